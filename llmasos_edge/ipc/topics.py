"""The topic tree under llmasos/v1/<site>/<node>/, and MQTT's rules for topics and filters (MQTT 5, section 4.7)."""

from collections.abc import Iterable

from llmasos_edge.errors import ConfigError

ANY = "any"  # the node name that stands for whichever node has room
MAX_CLIENT = 128  # characters of a client's name
MAX_TOPIC = 65_535 - len("/accepted")  # bytes; room for the suffixes that the node appends


class Topics:
    """Every topic that one node publishes or reads."""

    def __init__(self, site: str, node: str) -> None:
        """`site` and `node` are one level each; ConfigError if one can't be a level, or if the node is called `any`."""
        for key, name in (("metadata.site", site), ("metadata.name", node)):
            if topic_fault(name) or "/" in name:
                raise ConfigError(f"{key}: {name!r} can't be a topic level: leave out '/', '+' and '#'")
        if node == ANY:
            raise ConfigError("metadata.name: 'any' is reserved for requests to whichever node has room")
        self.site = site
        self.node = node
        self.root = f"llmasos/v1/{site}/{node}"
        self.status = f"{self.root}/status"
        self.info = f"{self.root}/info"
        self.models = f"{self.root}/models"
        self.metrics = f"{self.root}/metrics"
        self.config_desired = f"{self.root}/config/desired"
        self.config_reported = f"{self.root}/config/reported"
        self.requests = f"{self.root}/req/+/+"
        self.shared_requests = f"$share/llmasos/llmasos/v1/{site}/{ANY}/req/+/+"

    def event(self, kind: str) -> str:
        """Where events of one kind go (`model.loaded`)."""
        return f"{self.root}/event/{kind}"

    def result(self, client: str, request_id: str) -> str:
        """Where the final reply goes when the caller names no topic of its own."""
        return f"{self.root}/res/{client}/{request_id}"

    def parse_request(self, topic: str) -> tuple[str, str] | None:
        """(client, op) of a request to this node or to `any`; None for every other topic."""
        levels = topic.split("/")
        if len(levels) != 7 or levels[:3] != ["llmasos", "v1", self.site] or levels[4] != "req":
            return None
        client, op = levels[5:]
        known = levels[3] in (self.node, ANY) and op and 0 < len(client) <= MAX_CLIENT
        return (client, op) if known else None

    def reply_topic_allowed(self, topic: str, client: str, extra: Iterable[str] = ()) -> bool:
        """Whether `client` may have replies sent to `topic`: a concrete one below its own res/<client>/, or one listed.

        The node must not be made to speak for someone else, so nothing is normalised or guessed.
        """
        own = f"{self.root}/res/{client}/"
        if topic_fault(topic):
            return False
        return topic in extra or (topic.startswith(own) and all(topic.removeprefix(own).split("/")))


def accepted(reply_topic: str) -> str:
    """Where `accepted` goes, beside the final reply."""
    return f"{reply_topic}/accepted"


def stream(reply_topic: str) -> str:
    """Where the pieces of a streamed answer go, beside the final reply."""
    return f"{reply_topic}/stream"


def topic_fault(topic: str) -> str | None:
    """What keeps `topic` from being published to, or None."""
    if any(sign in topic for sign in "+#"):
        return "a topic to publish to has no wildcards"
    return _text_fault(topic)


def filter_fault(pattern: str) -> str | None:
    """What keeps `pattern` from being subscribed to, or None."""
    levels = pattern.split("/")
    if "#" in pattern and ("#" in "".join(levels[:-1]) or levels[-1] != "#"):
        return "'#' stands alone, as the last level"
    if any("+" in level and level != "+" for level in levels):
        return "'+' stands alone in its level"
    if levels[0] == "$share" and (len(levels) < 3 or not levels[1] or levels[1] == "+" or not "".join(levels[2:])):
        return "a shared subscription is '$share/<group>/<filter>'"
    return _text_fault(pattern)


def matches(pattern: str, topic: str) -> bool:
    """Whether a valid filter (not a shared one) takes in a concrete topic."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    if wanted[-1] == "#":
        wanted.pop()
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(want in ("+", level) for want, level in zip(wanted, levels, strict=True))


def _text_fault(text: str) -> str | None:
    if not text:
        return "it is empty"
    if "\0" in text:
        return "it contains a NUL character"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    return f"it is longer than {MAX_TOPIC} bytes" if size > MAX_TOPIC else None
