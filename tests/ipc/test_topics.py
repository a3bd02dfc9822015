"""Tests of the topic tree and of MQTT's matching rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos_edge.errors import ConfigError
from llmasos_edge.ipc.topics import Topics, accepted, filter_fault, matches, stream, topic_fault

TOPICS = Topics("home", "kitchen")
OWN = "llmasos/v1/home/kitchen/res/phone/"
LEVEL = st.text("ab$ é", max_size=3)


def test_every_topic_lies_under_the_nodes_root() -> None:
    """All that a node publishes has its site and name in the topic."""
    root = "llmasos/v1/home/kitchen/"
    assert TOPICS.status == root + "status"
    assert TOPICS.info == root + "info"
    assert TOPICS.models == root + "models"
    assert TOPICS.metrics == root + "metrics"
    assert TOPICS.config_desired == root + "config/desired"
    assert TOPICS.config_reported == root + "config/reported"
    assert TOPICS.event("model.loaded") == root + "event/model.loaded"
    assert TOPICS.result("phone", "7") == OWN + "7"
    assert accepted(OWN + "7") == OWN + "7/accepted"
    assert stream(OWN + "7") == OWN + "7/stream"


@pytest.mark.parametrize("name", ["", "a/b", "+", "a#", "a\0b", "\ud800"])
def test_a_name_that_is_no_level_is_refused(name: str) -> None:
    """A site or node name that would change the shape of topics is a configuration error that names the key."""
    with pytest.raises(ConfigError, match=r"metadata\.site"):
        Topics(name, "kitchen")
    with pytest.raises(ConfigError, match=r"metadata\.name"):
        Topics("home", name)


def test_a_node_may_not_be_called_any() -> None:
    """`any` addresses whichever node has room, so no node bears it."""
    with pytest.raises(ConfigError, match="reserved"):
        Topics("home", "any")


@pytest.mark.parametrize("node", ["kitchen", "any"])
def test_a_request_topic_tells_client_and_op(node: str) -> None:
    """Requests to this node and to `any` are told apart by client and operation."""
    assert TOPICS.parse_request(f"llmasos/v1/home/{node}/req/phone/model.load") == ("phone", "model.load")


@pytest.mark.parametrize(
    "topic",
    [
        "llmasos/v1/home/cellar/req/phone/chat",
        "llmasos/v1/work/kitchen/req/phone/chat",
        "llmasos/v1/home/kitchen/res/phone/chat",
        "llmasos/v1/home/kitchen/req/phone",
        "llmasos/v1/home/kitchen/req/phone/chat/x",
        "llmasos/v1/home/kitchen/req//chat",
        "llmasos/v1/home/kitchen/req/phone/",
        f"llmasos/v1/home/kitchen/req/{'x' * 129}/chat",
        "zigbee2mqtt/kitchen/smoke",
    ],
)
def test_other_topics_are_no_requests(topic: str) -> None:
    """What is not exactly a request to this node is not taken for one."""
    assert TOPICS.parse_request(topic) is None


@pytest.mark.parametrize("tail", ["7", "answers/7", "7/stream"])
def test_replies_may_go_below_the_clients_own_topic(tail: str) -> None:
    """A caller may choose any concrete topic below its own res/<client>/."""
    assert TOPICS.reply_topic_allowed(OWN + tail, "phone")


@pytest.mark.parametrize(
    "topic",
    [
        OWN,
        OWN + "+",
        OWN + "#",
        OWN + "a/+/b",
        OWN + "a//b",
        OWN + "a/",
        OWN + "a\0",
        OWN + "\udcff",
        OWN + "x" * 65_535,
        OWN.removesuffix("/"),
        "",
        "llmasos/v1/home/kitchen/res/phone2/7",
        "llmasos/v1/home/kitchen/status",
        "llmasos/v1/home/cellar/res/phone/7",
        "home/alerts/kitchen",
        "/" + OWN + "7",
    ],
)
def test_replies_may_not_go_elsewhere(topic: str) -> None:
    """The node is never made to speak on a topic that is not the caller's."""
    assert not TOPICS.reply_topic_allowed(topic, "phone")


def test_a_listed_topic_is_allowed_exactly() -> None:
    """The node file can list further reply topics of a client; they count letter by letter, and never as wildcards."""
    assert TOPICS.reply_topic_allowed("home/answers", "phone", ["home/answers"])
    assert not TOPICS.reply_topic_allowed("home/answers/7", "phone", ["home/answers"])
    assert not TOPICS.reply_topic_allowed("home/#", "phone", ["home/#"])


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("sport/tennis/#", "sport/tennis", True),
        ("sport/tennis/#", "sport/tennis/player1/ranking", True),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "a/b", True),
        ("#", "$SYS/broker", False),
        ("+/broker", "$SYS/broker", False),
        ("$SYS/#", "$SYS/broker", True),
        ("zigbee2mqtt/+/smoke", "zigbee2mqtt/kitchen/smoke", True),
        ("a/b", "a/B", False),
        ("a/b/#", "a", False),
    ],
)
def test_matching_follows_the_standard(pattern: str, topic: str, expected: bool) -> None:
    """The examples of the MQTT standard, and the case that the apps depend on."""
    assert matches(pattern, topic) is expected


@pytest.mark.parametrize("pattern", ["#", "+", "a/+/b/#", "/", "$share/g/a/#", "a b/é"])
def test_valid_filters_have_no_fault(pattern: str) -> None:
    """What a broker takes as a filter, we take."""
    assert filter_fault(pattern) is None


@pytest.mark.parametrize("pattern", ["", "a#", "#/a", "a/#/b", "a+/b", "a\0", "$share/g", "$share//a", "$share/+/a"])
def test_a_faulty_filter_is_explained(pattern: str) -> None:
    """A filter that a broker would refuse is told apart before it is sent."""
    assert filter_fault(pattern)


@given(st.lists(LEVEL, min_size=1, max_size=5))
def test_a_topic_matches_itself_and_what_encloses_it(levels: list[str]) -> None:
    """Every valid topic matches itself, itself with `+` for its last level, and its parent with `#`."""
    topic = "/".join(levels)
    if topic_fault(topic):
        return
    assert matches(topic, topic)
    if len(levels) > 1:
        assert matches("/".join([*levels[:-1], "+"]), topic)
        assert matches("/".join([*levels[:-1], "#"]), topic)
