"""The fixtures of the integration tests: real nodes, a real broker that outlives them, and real devices."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from llmasos_edge.ipc.broker import ManagedBroker
from llmasos_edge.kernel.hal import Loaded
from tests.engine.conftest import cut_model
from tests.integration.real_node import Device, RealNode
from tests.integration.worker_rig import Rig

MakeNode = Callable[..., RealNode]
MakeDevice = Callable[..., Device]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    """A node with a broker of its own, for all tests of a module."""
    node = RealNode(tmp_path_factory.mktemp("node"))
    try:
        yield node.start()
    finally:
        node.close()


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[MakeNode]:
    """Nodes of the test's own; what is left of them is ended."""
    with ExitStack() as stack:

        def make(*args: str, **options: object) -> RealNode:
            node = RealNode(tmp_path / "node", *args, **options)  # type: ignore[arg-type]
            stack.callback(node.close)
            return node

        yield make


@pytest.fixture
def outer_broker(tmp_path: Path) -> Iterator[ManagedBroker]:
    """A broker that is not the node's: it goes on when the node dies."""
    broker = ManagedBroker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def outer_node(outer_broker: ManagedBroker, make_node: MakeNode) -> RealNode:
    """A started node at the outer broker, which knows its clients."""
    return make_node(f'{{url: "mqtt://127.0.0.1:{outer_broker.port}", trust: acl}}').start()


@pytest.fixture
def make_device() -> Iterator[MakeDevice]:
    with ExitStack() as stack:

        def make(port: int, name: str, protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5) -> Device:
            device = Device(port, name, protocol)
            stack.callback(device.close)
            return device

        yield make


@pytest.fixture(params=[MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311], ids=["v5", "v311"])
def device(node: RealNode, make_device: MakeDevice, request: pytest.FixtureRequest) -> Device:
    """A phone that speaks MQTT 5, and one that speaks 3.1.1."""
    return make_device(node.port, f"phone-{request.node.callspec.id}", request.param)


@pytest.fixture
def phone(node: RealNode, make_device: MakeDevice, request: pytest.FixtureRequest) -> Device:
    """A phone that speaks MQTT 5; each test has another one, so that no id is known already."""
    return make_device(node.port, f"phone-{abs(hash(request.node.nodeid)) % 10**8}")


@pytest.fixture
def phone_at_outer(outer_node: RealNode, outer_broker: ManagedBroker, make_device: MakeDevice) -> Device:
    """A phone at the outer broker."""
    return make_device(outer_broker.port, "phone")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def rig(cut: Path) -> Iterator[Rig]:
    """One worker for all tests that leave it alive."""
    rig = Rig(cut)
    rig.wait(Loaded)
    yield rig
    rig.close()


@pytest.fixture
def own_rig(cut: Path) -> Iterator[Callable[..., Rig]]:
    """Workers of the test's own."""
    rigs: list[Rig] = []

    def make(path: Path = cut, **options: Any) -> Rig:
        rigs.append(Rig(path, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
