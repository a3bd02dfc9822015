"""`./run image-test`: the image, booted, asked and broken from outside, as owners, sensors and bad luck do it."""

import json
import sys
import time
from pathlib import Path
from typing import Final

from image import WORK
from image.emulator import Card, Emulator
from image.mqtt import Client, Refused
from image.owner import Failed, Owner, Report, require, wait
from llmasos_edge.engine.sandbox import FULL

ANSWER_S: Final = 90.0  # from power-on to the first answer
USERSPACE_MB: Final = 130
QUESTION: Final = "What is the capital of France? Answer in one word."
FLOOD: Final = 40
WATCHDOG_S: Final = 240.0  # noticed after 30 s, killed 30 s later, started again, the model loaded
NAME: Final = "kitchen"
MODEL: Final = "smollm2-135m"
LLMASOS: Final = "/opt/llmasos/bin/llmasos"
GROUP: Final = "/sys/fs/cgroup/llmasos.slice/llmasosd.service"
EXPOSURE: Final = 1.7  # systemd-analyze security
ZERO_NODE: Final = """\
apiVersion: llmasos/v1
kind: Node
metadata: {name: kitchen}
spec:
  board: raspberry-pi-zero-2-w # 512 MB
  mqtt: {url: "mqtt://127.0.0.1:1883", user: llmasos, password_file: mqtt.password, trust: acl}
  models:
    - {name: smollm2-135m, pin: true}
  apps: [smoke-alarm]
"""
MISSPELT: Final = "apiVersion: llmasos/v1\nkind: Appliance\nspec:\n  hostnam: kitchen\n"


def boot_image(image: Path) -> None:
    """A large machine with one processor, and a small one with the other. Exits 1 at the first failure."""
    if not image.is_file():
        sys.exit(f"image-test: there is no {image}: `./run image` builds it")
    report = Report()
    try:
        _large(image, report)
        _small(image, report)
    except (Failed, Refused, TimeoutError) as error:
        print(report.table())
        sys.exit(f"image-test: {report.machine}: {error}")
    print(report.table())
    if report.missed:
        sys.exit("\n".join(["image-test: all works, but not these figures:", *report.missed]))


def _large(image: Path, report: Report) -> None:
    card = Card(image, WORK / "test" / "large")
    owner = Owner(card)
    card.write("llmasos.yaml", owner.settings(NAME))
    report.machine = "Cortex-A76, 2 GB"
    with Emulator(card, "cortex-a76", 2048) as machine:
        _first_boot(machine, owner, report)
        user, password = owner.access(machine)
        with Client(machine.mqtt_port, user, password, NAME) as client:
            _strangers(machine, client, report)
            _alarm(client, report)
            _system(machine, owner, report)
            _confined(machine, owner, report)
            _memory(machine, owner, report)
            _selftest(machine, owner, report)
            _worker_killed(machine, owner, client, report)
            _flood(machine, owner, client, report)
            _daemon_hangs(machine, owner, client, report)
        _reboot(machine, owner, report)


def _small(image: Path, report: Report) -> None:
    card = Card(image, WORK / "test" / "small")
    owner = Owner(card)
    card.write("llmasos.yaml", MISSPELT)
    card.write("node.yaml", ZERO_NODE.replace("kitchen", "llmasos"))
    report.machine = "Cortex-A72, 512 MB"
    with Emulator(card, "cortex-a72", 512) as machine:
        _mistakes(machine, owner, report)
    card.write("llmasos.yaml", owner.settings(NAME))
    card.write("node.yaml", ZERO_NODE)
    with Emulator(card, "cortex-a72", 512) as machine:
        _mended(machine, owner, report)
        user, password = owner.access(machine)
        with Client(machine.mqtt_port, user, password, NAME) as client:
            _alarm(client, report)
            _system(machine, owner, report)
            _confined(machine, owner, report)
            _memory(machine, owner, report)
            _selftest(machine, owner, report)
            _worker_killed(machine, owner, client, report)
            _flood(machine, owner, client, report)


def _connect(machine: Emulator, owner: Owner, node: str) -> Client:
    user, password = owner.access(machine)
    return wait(lambda: Client(machine.mqtt_port, user, password, node), machine, "the broker")


def _first_boot(machine: Emulator, owner: Owner, report: Report, node: str = NAME) -> None:
    with report.check("first boot, to the status online"), _connect(machine, owner, node) as client:
        client.wait_online(ANSWER_S * 3)
        _first_answer(machine, client, report)


def _first_answer(machine: Emulator, client: Client, report: Report) -> None:
    with report.check("first answer") as seen:
        reply = client.ask(QUESTION, max_tokens=24)
        took = time.monotonic() - machine.started
        require(reply["status"] == "ok", f"the first answer is {reply}")
        require("Paris" in reply["output"]["text"], f"the first answer is {reply['output']['text']!r}")
        seen += [repr(reply["output"]["text"]), f"{took:.0f} s after power-on"]
        report.figure(
            took < ANSWER_S, f"the first answer came {took:.0f} s after power-on, not within {ANSWER_S:.0f} s"
        )


def _strangers(machine: Emulator, client: Client, report: Report) -> None:
    with report.check("strangers are refused") as seen:
        for user, password in ((None, None), (client.user, "wrong password"), ("nobody", "12345678")):
            try:
                Client(machine.mqtt_port, user, password).close()
            except Refused as refused:
                seen.append(f"{user}: {refused}")
            else:
                raise Failed(f"the broker lets {user} in")
        own, client.user = client.user, "somebody"
        try:
            client.ask(QUESTION, timeout_s=5)
        except TimeoutError:
            seen.append("a request under another's name: no reply")
        else:
            raise Failed("a request under another's name is answered")
        finally:
            client.user = own


def _alarm(client: Client, report: Report) -> None:
    with report.check("smoke alarm") as seen:
        client.subscribe("home/alerts/#")
        client.publish("zigbee2mqtt/kitchen/smoke", {"smoke": True, "temperature": 61})
        alert = client.receive(lambda it: it == "home/alerts/kitchen", 60)
        require("Leave the" in alert["instruction"], f"the alarm says {alert}")
        seen.append(alert["instruction"])


def _system(machine: Emulator, owner: Owner, report: Report) -> None:
    with report.check("the system") as seen:
        failed = owner.run(machine, "systemctl --failed --plain --no-legend")
        require(not failed, f"failed units: {failed}")
        grown = int(owner.run(machine, "df --output=size -m /data | tail -n 1"))
        require(grown > 1500, f"the data partition has {grown} MiB of a card of 4 GiB")
        locked = owner.run(machine, r"awk -F: '$2 !~ /^[!*]/ {print $1}' /etc/shadow")
        require(not locked, f"accounts with a password: {locked}")
        touched = owner.run(machine, "touch /usr/x 2>&1 || true")
        require(touched.endswith("Read-only file system"), f"the root is not read-only: {touched}")
        exposure = owner.run(machine, "systemd-analyze security --no-pager llmasosd | tail -n 1").split(": ")[-1]
        require(float(exposure.split()[0]) <= EXPOSURE, f"the service's exposure is {exposure}")
        seen += ["no unit failed", f"data grown to {grown} MiB", f"exposure {exposure}"]


def _confined(machine: Emulator, owner: Owner, report: Report) -> None:
    """The worker's sandbox is whole, and it is alone in a control group with a limit."""
    with report.check("the worker is confined") as seen:
        (model,) = json.loads(owner.run(machine, f"{LLMASOS} models --json"))
        require(model["sandbox"] == FULL, f"the worker's sandbox is {model['sandbox']}")
        limits = owner.run(machine, f"cd {GROUP} && grep -H . worker-*/memory.max worker-*/memory.oom.group")
        found = dict(line.split("/", 1)[1].split(":") for line in limits.splitlines())
        require(found.get("memory.oom.group") == "1" and found["memory.max"].isdigit(), f"the group has {found}")
        worker = owner.run(machine, f"cat {GROUP}/worker-*/cgroup.procs")
        require(worker == owner.run(machine, "pgrep -f llmasos_edge.engine.worker"), f"the group has {worker}")
        seen += [str(model["sandbox"]), f"memory.max {int(found['memory.max']) >> 20} MiB"]


def _memory(machine: Emulator, owner: Owner, report: Report) -> None:
    """All processes' shares of RAM, less what is the model: mapped weights, KV cells, and compute buffers."""
    with report.check("memory") as seen:
        regions = json.loads(owner.run(machine, f"{LLMASOS} mem --json"))["regions"]
        buffers = {kind: sum(it["bytes"] for it in regions if it["kind"] == kind) for kind in ("kv", "compute")}
        everything, weights = (int(it) * 1024 for it in owner.run(machine, MEASURE).split())
        userspace = (everything - weights - sum(buffers.values())) / 1e6
        model = {"weights in RAM": weights, "KV cells": buffers["kv"], "compute buffers": buffers["compute"]}
        beside = " and ".join(f"{size / 1e6:.0f} MB of {name}" for name, size in model.items())
        seen.append(f"userspace {userspace:.0f} MB beside {beside}")
        report.figure(userspace < USERSPACE_MB, f"userspace takes {userspace:.0f} MB")


def _selftest(machine: Emulator, owner: Owner, report: Report) -> None:
    with report.check("the model's self-test") as seen:
        told = owner.run(machine, f"sudo -u llmasos {LLMASOS} model selftest {MODEL}", 600)
        models = json.loads(owner.run(machine, f"{LLMASOS} models --json"))
        found = next(it["selftest"] for it in models if it["id"] == MODEL)
        require(found and found["deterministic"] in ("yes", "approximate"), f"the model's entry says {found}")
        seen.append(told)


def _worker_killed(machine: Emulator, owner: Owner, client: Client, report: Report) -> None:
    with report.check("a worker is killed while it answers") as seen:
        wanted = client.request("Tell me a story.", max_tokens=64)
        time.sleep(3)
        owner.run(machine, "pkill -KILL -f llmasos_edge.engine.worker")
        (reply,) = client.replies([wanted], 180)
        require(reply["status"] == "ok", f"the answer is {reply}")
        seen.append(f"{reply['usage']['completion_tokens']} tokens all the same")


def _flood(machine: Emulator, owner: Owner, client: Client, report: Report) -> None:
    with report.check(f"a flood of {FLOOD} tasks") as seen:
        before = owner.run(machine, "systemctl show -P MainPID llmasosd")
        ids = [client.request(f"Tell me about the number {it}. ", max_tokens=8) for it in range(FLOOD)]
        replies = client.replies(ids, 900)
        good = sum(it["status"] == "ok" for it in replies)
        require(owner.run(machine, "systemctl show -P MainPID llmasosd") == before, "the daemon is another one")
        killed = owner.run(machine, "journalctl -k --no-pager | grep -ci 'killed process' || true")
        seen += [f"{good} answered, {len(replies) - good} refused", f"processes that the OOM killer took: {killed}"]
        require(good, "nothing was answered")


def _daemon_hangs(machine: Emulator, owner: Owner, client: Client, report: Report) -> None:
    with report.check("the daemon hangs, and the watchdog ends it") as seen:
        before = owner.run(machine, "systemctl show -P MainPID llmasosd")
        owner.run(machine, f"kill -STOP {before}")
        wait(lambda: _restarted(machine, owner, before), machine, "a new daemon", WATCHDOG_S)
        reply = client.ask(QUESTION, timeout_s=WATCHDOG_S, max_tokens=24)
        require(reply["status"] == "ok", f"the answer is {reply}")
        seen.append(owner.run(machine, "systemctl show -P NRestarts llmasosd") + " restart")


def _restarted(machine: Emulator, owner: Owner, before: str) -> str | None:
    now = owner.run(machine, "systemctl show -P MainPID llmasosd")
    return now if now not in (before, "0") else None


def _reboot(machine: Emulator, owner: Owner, report: Report) -> None:
    with report.check("clean reboot; its session is there") as seen:
        identity = owner.run(machine, "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub")
        boot = owner.run(machine, "cat /proc/sys/kernel/random/boot_id")
        with _connect(machine, owner, NAME) as client:
            first = client.ask("My name is Ada.", session="s", max_tokens=16)
            owner.run(machine, "systemctl --no-block reboot")
        wait(lambda: _rebooted(machine, owner, boot), machine, "the machine after a reboot")
        with _connect(machine, owner, NAME) as client:
            client.wait_online(ANSWER_S * 3)
            second = client.ask("What is my name?", session="s", max_tokens=16)
        tokens = [it["usage"]["prompt_tokens"] for it in (first, second)]
        require(tokens[1] > tokens[0] + 16, f"the prompts have {tokens} tokens: nothing was kept")
        same = owner.run(machine, "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub")
        require(same == identity, "machine id or host key changed")
        seen.append(f"prompts of {tokens[0]} and {tokens[1]} tokens")


def _rebooted(machine: Emulator, owner: Owner, before: str) -> str | None:
    now = owner.run(machine, "cat /proc/sys/kernel/random/boot_id")
    return now if now != before else None


def _mistakes(machine: Emulator, owner: Owner, report: Report) -> None:
    _first_boot(machine, owner, report, "llmasos")
    with report.check("a mistake in llmasos.yaml is told on the card") as seen:
        told = (owner.card.read("FIRSTBOOT-ERROR.txt") or b"").decode()
        require('did you mean "hostname"' in told, f"FIRSTBOOT-ERROR.txt: {told}")
        seen.append(told.strip().splitlines()[-1])


def _mended(machine: Emulator, owner: Owner, report: Report) -> None:
    with report.check("after a power cut, and with the file mended") as seen:
        with _connect(machine, owner, NAME) as client:
            client.wait_online(ANSWER_S * 3)
        require(owner.card.read("FIRSTBOOT-ERROR.txt") is None, "FIRSTBOOT-ERROR.txt is still there")
        seen.append(owner.run(machine, "hostname"))


# PSS in KiB: of all processes, and of the worker's model file.
MEASURE: Final = r"""
cat /proc/[0-9]*/smaps_rollup 2>/dev/null | awk '/^Pss:/ {sum += $2} END {print sum}'
cat /proc/$(pgrep -f llmasos_edge.engine.worker | head -n 1)/smaps |
    awk '/^[0-9a-f]+-/ {file = $6} /^Pss:/ && file ~ /\.gguf$/ {sum += $2} END {print sum + 0}'
"""
