"""Requests: an invalid one is refused when it is made, by the name of its field; a valid one comes back from an
allocation's hints.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodestate.errors import BadRequestError
from nodestate.model import MAX_AMOUNT, MAX_CLASSES_COUNT, MAX_WORD_CHARS, event_from_json, parse_state
from nodestate.model.orders import Build, decode_order, encode
from nodestate.ports.ids import SystemIds
from nodestate.scheduling.request import GroupRequest, InstanceGroup, Request, hints_of, parse, parse_group, request_of
from nodestate.scheduling.request.limits import MAX_COUNT, MAX_GROUP_COUNT, MAX_HINTS_BYTES, MAX_HOLD_S

SMALL = {"resources": {"VCPU": 1}}
WEB = {"name": "web", "policy": "soft-anti-affinity"}
AVX, SSE = "HW_CPU_X86_AVX2", "HW_CPU_X86_SSE42"


EVENT = {"kind": "report", "node": "n", "incarnation": 1, "generation": 1, "reported_at": 1}


def refusal(content: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as refused:
        parse(content)
    return refused.value


def group_refusal(content: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as refused:
        parse_group(content)
    return refused.value


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("resources", {"resources": None}),
        ("resources", {"resources": ["VCPU"]}),
        ("resources", {"resources": {1: 1}}),
        ("resources", {"resources": {f"CUSTOM_{n}": 1 for n in range(MAX_CLASSES_COUNT + 1)}}),
        ("resources.vcpu", {"resources": {"vcpu": 1}}),
        ("resources.CUSTOM_gpu", {"resources": {"CUSTOM_gpu": 1}}),
        ("resources." + "CUSTOM_" + 249 * "A", {"resources": {"CUSTOM_" + 249 * "A": 1}}),
        ("resources.VCPU", {"resources": {"MEMORY_MB": 5, "VCPU": -1}}),
        ("resources.VCPU", {"resources": {"VCPU": MAX_AMOUNT + 1}}),
        ("resources.VCPU", {"resources": {"VCPU": 2**70}}),
        ("resources.VCPU", {"resources": {"MEMORY_MB": 5, "VCPU": "4"}}),
        ("resources.VCPU", {"resources": {"VCPU": 1.5}}),
        ("resources.VCPU", {"resources": {"VCPU": True}}),
        ("count", {"count": 0}),
        ("count", {"count": -1}),
        ("count", {"count": MAX_COUNT + 1}),
        ("count", {"count": "3"}),
        ("count", {"count": True}),
        ("count", {"instances": [f"i{n}" for n in range(MAX_COUNT + 1)]}),
        ("instances", {"instances": ["a", "a"]}),
        ("instances", {"instances": ["a"], "count": 2}),
        ("instances", {"instances": "a"}),
        ("instances[1]", {"instances": ["a", ""]}),
        ("required_traits", {"required_traits": AVX}),
        ("required_traits[0]", {"required_traits": [3]}),
        ("any_traits[0]", {"any_traits": [""]}),
        ("forbidden_traits", {"forbidden_traits": [AVX], "required_traits": [SSE, AVX]}),
        ("any_traits", {"any_traits": [AVX], "forbidden_traits": [AVX, SSE]}),
        ("different_host", {"different_host": ["a"], "same_host": ["b", "a"]}),
        ("force_nodes", {"force_nodes": ["a"], "ignore_nodes": ["a", "b"]}),
        ("force_nodes[0]", {"force_nodes": ["a b"]}),
        ("ignore_nodes", {"ignore_nodes": ["n"] * 10_001}),
        ("zone", {"zone": 5}),
        ("zone", {"zone": "z" * (MAX_WORD_CHARS + 1)}),
        ("group", {"group": "web"}),
        ("group.policy", {"group": {"name": "web"}}),
        ("group.policy", {"group": {"name": "web", "policy": "antiaffinity"}}),
        ("group.name", {"group": {"name": "", "policy": "affinity"}}),
        ("group.polizy", {"group": {"name": "web", "policy": "affinity", "polizy": 1}}),
        ("group.max_per_node", {"group": {"name": "web", "policy": "anti-affinity", "max_per_node": 0}}),
        ("group.max_per_node", {"group": {"name": "web", "policy": "affinity", "max_per_node": 2}}),
        ("spread_by", {"spread_by": "zone"}),
        ("spread_by", {"spread_by": "rack", "group": {"name": "web", "policy": "affinity"}}),
        ("spread", {"spread": {"by": "zone"}}),
        ("spread", {"spread": "zone", "group": WEB}),
        ("spread.by", {"spread": {"max_skew": 1}, "group": WEB}),
        ("spread.by", {"spread": {"by": "rack"}, "group": WEB}),
        ("spread.max_skew", {"spread": {"by": "zone", "max_skew": 0}, "group": WEB}),
        ("spread.max_skew", {"spread": {"by": "zone", "max_skew": 1.5}, "group": WEB}),
        ("spread", {"spread": {"by": "zone"}, "group": {"name": "web", "policy": "affinity"}}),
        ("aggregates_all[0]", {"aggregates_all": [""]}),
        ("aggregates_none", {"aggregates_none": ["a", "b"], "aggregates_all": ["b"]}),
        ("aggregates", {"aggregates": ["a"], "aggregates_none": ["a", "b"]}),
        ("tolerations", {"tolerations": "gpu"}),
        ("weights.cpu", {"weights": {"ram": 1.0, "cpu": math.nan}}),
        ("weights.cpu", {"weights": {"cpu": 1e7}}),
        ("weights.cpu", {"weights": {"cpu": "much"}}),
        ("max_age", {"max_age": 0}),
        ("max_age", {"max_age": math.nan}),
        ("max_age", {"max_age": "5"}),
        ("alternates", {"alternates": -1}),
        ("alternates", {"alternates": 33}),
        ("flavor", {"flavor": "m1.small"}),
        ("1", {1: 2}),
    ],
)
def test_invalid_field_is_named(field: str, more: dict[Any, Any]) -> None:
    """The user must see what to change, and nothing of an invalid request may go any further."""
    assert refusal({**SMALL, **more}).field == field


@pytest.mark.parametrize(
    "more",
    [
        {"resources": {"VCPU": "2"}},
        {"count": "3"},
        {"count": 2.5},
        {"required_traits": AVX},
        {"zone": 5},
        {"max_age": 0},
        {"max_age": "5"},
        {"force_nodes": ["a b"]},
        {"group": "web"},
        {"weights": {"cpu": 1e7}},
        {"spread_by": "rack", "group": InstanceGroup(name="web", policy="affinity")},
        {"spread": {"by": "rack"}, "group": InstanceGroup(name="web", policy="affinity")},
        {"same_host": [""]},
    ],
)
def test_constructor_refuses_what_parse_refuses(more: dict[str, Any]) -> None:
    """Regression: such a request failed on one node after the other, or its hints could not be read by a migration."""
    with pytest.raises(BadRequestError) as refused:
        Request(**{**SMALL, **more})
    group = {"group": WEB} if isinstance(more.get("group"), InstanceGroup) else {}
    assert str(refused.value) == str(refusal({**SMALL, **more, **group}))


def test_constructors_of_groups_refuse_wrong_types() -> None:
    """As the constructor of a request does."""
    with pytest.raises(BadRequestError, match=r"policy.*want affinity or"):
        InstanceGroup(name="web", policy="antiaffinity")  # type: ignore[arg-type]  # a wrong word
    with pytest.raises(BadRequestError, match="hold_s"):
        GroupRequest(members=(Request(**SMALL),), hold_s="long")  # type: ignore[arg-type]  # a wrong type
    with pytest.raises(BadRequestError, match="members"):
        GroupRequest(members=(SMALL, 3))  # type: ignore[arg-type]


def test_constructor_takes_values_in_the_forms_that_parse_takes() -> None:
    """A list for a tuple, a whole float for an integer, and a map for a group."""
    made = Request(resources={"VCPU": 2.0}, count=1.0, required_traits=[AVX], group=WEB, zone=None)  # type: ignore[arg-type, dict-item]
    assert made == parse({"resources": {"VCPU": 2}, "required_traits": [AVX], "group": WEB})
    assert (type(made.resources["VCPU"]), type(made.required_traits)) == (int, tuple)


def test_whole_floats_are_integers() -> None:
    """JSON has one kind of numbers, and some programs write 1.0 for 1."""
    group = {"name": "web", "policy": "anti-affinity"}
    floats = {"resources": {"VCPU": 2.0}, "count": 3.0, "group": {**group, "max_per_node": 2.0}, "alternates": 1.0}
    assert parse(floats) == parse(json.dumps(floats))
    assert parse(floats) == parse(
        {"resources": {"VCPU": 2}, "count": 3, "group": {**group, "max_per_node": 2}, "alternates": 1}
    )
    assert refusal({"resources": {"VCPU": 2.5}}).field == "resources.VCPU"
    assert refusal({"resources": {"VCPU": 1e300}}).field == "resources.VCPU"


def test_null_leaves_a_field_unset() -> None:
    """Programs write null for a field that has no value."""
    null = dict.fromkeys(field for field in Request.__struct_fields__ if field != "resources")
    assert parse({**SMALL, **null}) == parse(SMALL)
    assert parse({"resources": {"VCPU": 1, "DISK_GB": None}}) == parse(SMALL)
    assert parse({**SMALL, "group": {**WEB, "max_per_node": None}}) == parse({**SMALL, "group": WEB})
    members = {"members": [{**SMALL, **null}], "group": None, "hold_s": None, "max_age": None}
    assert parse_group(members) == parse_group({"members": [SMALL]})
    assert parse_group({"members": [{**SMALL, "instances": ["a", "b"], "count": None}]}).members[0].count == 2


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("resources.VCPU", {"resources": {"VCPU": -1}}),
        ("resources.VCPU", {"resources": {"VCPU": -1.0}}),
        ("count", {"count": -1}),
        ("alternates", {"alternates": -1}),
        ("max_age", {"max_age": -1}),
        ("max_age", {"max_age": -1.0}),
        ("group.max_per_node", {"group": {"name": "web", "policy": "anti-affinity", "max_per_node": -1}}),
        ("spread.max_skew", {"spread": {"by": "zone", "max_skew": -1}, "group": WEB}),
    ],
)
def test_minus_one_is_refused_with_the_word_unlimited(field: str, more: dict[str, Any]) -> None:
    """Many systems use -1 for it, and "want 1 to 281,474,976,710,656" would not help their users."""
    assert (refusal({**SMALL, **more}).field, "unlimited" in refusal({**SMALL, **more}).reason) == (field, True)
    within = group_refusal({"members": [{**SMALL, **more}]})
    assert (within.field, "unlimited" in within.reason) == (f"members[0].{field}", True)


def test_minus_one_as_the_time_of_a_reservation_is_refused_with_the_word_unlimited() -> None:
    """And a negative multiplier is no mistake."""
    assert "unlimited" in group_refusal({"members": [SMALL], "hold_s": -1}).reason
    assert parse({**SMALL, "weights": {"cpu": -1}}).weights == {"cpu": -1.0}


@pytest.mark.parametrize("content", ["", "{", "nope", "[]", "3", "null", b"\xff\xfe", "[" * 100_000, None, 5, [SMALL]])
def test_content_that_is_no_map_is_refused_as_a_whole(content: Any) -> None:
    """No field is to blame."""
    assert refusal(content).field == "request"


def test_numbers_that_fit_json_but_no_node_are_refused() -> None:
    """2**70 would not fit the columns; 1e400 is no number of Python."""
    assert refusal('{"resources": {"VCPU": 1180591620717411303424}}').field == "resources.VCPU"
    assert refusal('{"resources": {"VCPU": 1e400}}').field == "request"


def test_error_of_an_empty_request_names_the_missing_field() -> None:
    """An empty request is the first that many users try."""
    assert refusal({}).field == "resources"
    assert refusal({"count": 3}).field == "resources"


def test_error_of_a_misspelt_class_suggests_the_right_one() -> None:
    """OpenStack's classes are upper-case."""
    assert refusal({"resources": {"memory_mb": 1}}).reason.endswith("did you mean MEMORY_MB?")


@pytest.mark.parametrize("resources", [{"VCPU": 1, "DISK_GB": 0}, {}, {"VCPU": 0}, {"GPU_SLICE": 2}])
def test_whatever_an_allocation_may_have_can_be_asked_for_and_moved(resources: dict[str, int]) -> None:
    """C4: agents report such allocations, and their instances must not be stuck on their nodes."""
    state = {"allocations": {"i": {"resources": resources}}, "traits": ["GOLD", AVX]}
    event_from_json(msgspec.json.encode({**EVENT, "state": state}))
    moved = request_of("i", resources, None, {"required_traits": ["GOLD"]})
    assert moved == parse({"resources": resources, "instances": ["i"], "required_traits": ["GOLD"]})
    assert moved.resources == {name: amount for name, amount in resources.items() if amount}


def test_largest_valid_request_fits_an_order_and_a_report() -> None:
    """An agent would refuse a larger order, so the instance would fail on one node after the other. Reports must carry
    the hints as well.
    """
    names = [f"CUSTOM_{n:0{MAX_WORD_CHARS - 7}}" for n in range(MAX_CLASSES_COUNT)]
    instances = [f"{n:04}{'i' * 251}" for n in range(MAX_HINTS_BYTES // 259)]
    request = parse({"resources": dict.fromkeys(names, MAX_AMOUNT), "different_host": instances})
    order = Build(
        id="o" * MAX_WORD_CHARS,
        node="n" * 200,
        instance="i" * MAX_WORD_CHARS,
        resources=request.resources,
        group="g" * MAX_WORD_CHARS,
        hints=hints_of(request),
        deadline=1e10,
        reply_to="q" * MAX_WORD_CHARS,
    )
    assert decode_order(encode(order)) == order
    allocation = {"resources": order.resources, "group": order.group, "hints": order.hints}
    parse_state(msgspec.msgpack.encode({"allocations": {order.instance: allocation}}))


def test_too_large_hints_are_refused_by_the_name_of_the_largest_field() -> None:
    """They would fail on one node after the other: the names of instances alone could be megabytes."""
    refused = refusal({**SMALL, "same_host": [f"i{n}" for n in range(200)], "ignore_nodes": ["n" * 200] * 200})
    assert refused.field == "ignore_nodes"


# -- groups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "content"),
    [
        ("members", {}),
        ("members", {"members": None}),
        ("members", {"members": "abc"}),
        ("members", {"members": {"a": SMALL}}),
        ("members", {"members": []}),
        ("members", {"members": [SMALL] * (MAX_GROUP_COUNT + 1)}),
        ("members", {"members": [SMALL] * 10_000}),
        ("members", {"members": [{**SMALL, "count": 200}] * 2}),
        ("members[0].count", {"members": [{**SMALL, "count": 10_000}]}),
        ("members[0].count", {"members": [{**SMALL, "count": 0}]}),
        ("members[3].resources.vcpu", {"members": [SMALL] * 3 + [{"resources": {"vcpu": 1}}]}),
        ("members[1].resources.VCPU", {"members": [SMALL, {"resources": {"VCPU": "x"}}]}),
        ("members[1].resources", {"members": [SMALL, {}]}),
        ("members[1].group.name", {"members": [SMALL, {**SMALL, "group": {"name": 1, "policy": "affinity"}}]}),
        ("members[1]", {"members": [SMALL, 3]}),
        ("members[1]", {"members": [SMALL, "no JSON"]}),
        ("members", {"members": [{**SMALL, "instances": ["a"]}] * 2}),
        (
            "members[0].group",
            {
                "members": [{**SMALL, "group": {"name": "a", "policy": "affinity"}}],
                "group": {"name": "b", "policy": "affinity"},
            },
        ),
        ("group.max_per_node", {"members": [SMALL], "group": {"name": "a", "policy": "affinity", "max_per_node": 2}}),
        ("hold_s", {"members": [SMALL], "hold_s": 0}),
        ("hold_s", {"members": [SMALL], "hold_s": math.nan}),
        ("hold_s", {"members": [SMALL], "hold_s": MAX_HOLD_S + 1}),
        ("hold_s", {"members": [SMALL], "hold_s": "long"}),
        ("max_age", {"members": [SMALL], "max_age": -1.0}),
        ("owners", {"members": [SMALL], "owners": "me"}),
        ("request", "nope"),
        ("request", []),
    ],
)
def test_invalid_field_of_a_group_request_is_named_with_its_member(field: str, content: Any) -> None:
    """Of 256 members one may be misspelt."""
    assert group_refusal(content).field == field


def test_group_request_may_have_the_maximum_number_of_members() -> None:
    """The limit itself is allowed."""
    assert len(parse_group({"members": [SMALL] * MAX_GROUP_COUNT}).members) == MAX_GROUP_COUNT
    [member] = parse_group({"members": [{**SMALL, "count": MAX_GROUP_COUNT}]}).members
    assert len(set(member.instance_ids(SystemIds()))) == MAX_GROUP_COUNT


# -- requests from hints ---------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
traits = st.lists(st.sampled_from([AVX, SSE, "CUSTOM_A", "CUSTOM_B", "STORAGE_DISK_SSD"]), unique=True, max_size=3)
nodes = st.lists(st.sampled_from(["n1", "n2", "n3"]), unique=True, max_size=2)
apart = st.tuples(traits, traits).map(lambda two: (two[0], [trait for trait in two[1] if trait not in two[0]]))
groups = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {"name": words, "policy": st.sampled_from(["affinity", "soft-affinity", "soft-anti-affinity"])}
    ),
    st.fixed_dictionaries({"name": words, "policy": st.just("anti-affinity"), "max_per_node": st.integers(1, 9)}),
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Any valid request, as a map."""
    required, forbidden = draw(apart)
    content = {
        "resources": draw(
            st.dictionaries(st.sampled_from(["VCPU", "DISK_GB", "CUSTOM_X"]), st.integers(1, 9), min_size=1)
        ),
        "required_traits": required,
        "forbidden_traits": forbidden,
        "zone": draw(st.just("") | words),
        "aggregates": draw(st.lists(words, max_size=2)),
        "aggregates_all": draw(st.lists(words.map("all-".__add__), max_size=2)),
        "aggregates_none": draw(st.lists(words.map("none-".__add__), max_size=2)),
        "tolerations": draw(st.lists(words, max_size=2)),
        "same_host": draw(st.lists(st.sampled_from(["a", "b"]), max_size=2)),
        "different_host": draw(st.lists(st.sampled_from(["c", "d"]), max_size=2)),
        "force_nodes": draw(nodes),
        "weights": draw(st.dictionaries(words, st.floats(-1e6, 1e6), max_size=2)),
        "group": draw(groups),
    }
    if content["group"] is not None:
        content["spread_by"] = draw(st.sampled_from(["", "zone", "aggregate"]))
        by = st.fixed_dictionaries({"by": st.sampled_from(["zone", "aggregate"]), "max_skew": st.integers(1, 9)})
        content["spread"] = draw(st.none() | by) if content["group"]["policy"] != "affinity" else None
    return content


@given(requests())
def test_request_is_rebuilt_from_the_hints_of_its_allocation(content: dict[str, Any]) -> None:
    """I10: a migration is scheduled under the same hints as the boot. The hints go through msgpack, JSON and the
    agent's state.
    """
    request = parse({**content, "instances": ["vm"]})
    hints = json.loads(json.dumps(msgspec.msgpack.decode(msgspec.msgpack.encode(hints_of(request)))))
    group = request.group.name if request.group is not None else None
    assert request_of("vm", request.resources, group, hints) == request


@given(requests())
def test_json_and_a_map_give_the_same_request(content: dict[str, Any]) -> None:
    """Requests come from the command line, from messages and from Python."""
    assert parse(json.dumps(content)) == parse(content) == parse(json.dumps(content).encode())


@given(requests(), st.integers(1, 9))
def test_requests_that_rank_nodes_alike_have_the_same_shape(content: dict[str, Any], count: int) -> None:
    """The count, the ids and the age say nothing about a node, and neither does the order of maps: the ranking of one
    such request serves the others.
    """
    turned = {
        name: dict(reversed(value.items())) if isinstance(value, dict) else value for name, value in content.items()
    }
    other = parse({**turned, "count": count, "alternates": 3, "max_age": 2.0})
    assert other.shape == parse({**content, "instances": ["vm"]}).shape


@pytest.mark.parametrize(
    "more",
    [
        {"resources": {"VCPU": 2}},
        {"zone": "az1"},
        {"required_traits": [AVX]},
        {"group": {"name": "web", "policy": "affinity"}},
        {"group": {"name": "db", "policy": "affinity"}},
        {"weights": {"cpu": 2.0}},
        {"ignore_nodes": ["n1"]},
        {"aggregates_all": ["a"]},
        {"aggregates_none": ["a"]},
        {"tolerations": ["a"]},
        {"group": WEB, "spread": {"by": "zone"}},
        {"group": WEB, "spread": {"by": "zone", "max_skew": 2}},
    ],
)
def test_requests_that_rank_nodes_differently_have_different_shapes(more: dict[str, Any]) -> None:
    """Otherwise one would be placed by the ranking of the other."""
    assert parse({**SMALL, **more}).shape != parse(SMALL).shape


def test_hints_hold_only_the_constraints_that_are_set() -> None:
    """Hints travel with every report for the instance's lifetime. The group's name is a field beside them; policies are
    named as in Nova.
    """
    assert hints_of(parse(SMALL)) == {}
    group = {"name": "web", "policy": "anti-affinity", "max_per_node": 2}
    assert hints_of(parse({**SMALL, "zone": "az1", "required_traits": [AVX], "group": group})) == {
        "zone": "az1",
        "required_traits": [AVX],
        "group_policy": "anti-affinity",
        "max_per_node": 2,
    }


def test_hints_of_other_services_are_ignored() -> None:
    """Other services store theirs in the same map. A group without a policy hint has no policy."""
    request = request_of("vm", {"VCPU": 1}, "web", {"build_id": 7, "move": 3, "zone": "az1"})
    assert request == parse({"resources": {"VCPU": 1}, "instances": ["vm"], "zone": "az1"})


def test_invalid_hint_is_refused_by_name() -> None:
    """An instance must not be migrated to any node because its constraints could not be read."""
    with pytest.raises(BadRequestError) as refused:
        request_of("vm", {"VCPU": 1}, "web", {"group_policy": "antiaffinity"})
    assert refused.value.field == "group.policy"


def test_request_without_ids_makes_them_once() -> None:
    """A request that is asked twice for its ids must not become twice as many instances."""
    request = parse({**SMALL, "count": 3})
    assert len(set(request.instance_ids(SystemIds()))) == 3
    assert request.instance_ids(SystemIds()) == request.instance_ids(SystemIds())
    assert parse({**SMALL, "instances": ["b", "a"]}).instance_ids(SystemIds()) == ("b", "a")
    assert len(parse({**SMALL, "instances": []}).instance_ids(SystemIds())) == 1


def test_request_made_in_python_is_validated_as_a_parsed_one() -> None:
    """Users of the library need no JSON."""
    with pytest.raises(BadRequestError) as refused:
        Request(resources={"VCPU": -2})
    assert refused.value.field == "resources.VCPU"
    with pytest.raises(BadRequestError) as refused:
        Request(resources={"VCPU": 1}, group=InstanceGroup(name="web", policy="affinity", max_per_node=2))
    assert refused.value.field == "group.max_per_node"


GROUP = {"hold_s": 5, "members": [SMALL]}


def test_error_of_a_request_of_the_other_kind_names_the_command_for_it() -> None:
    """Regression: ``hold_s`` of a group request was an unknown field, and the error did not mention group requests."""
    for refused in (refusal(GROUP), refusal({"members": 3}), refusal({**GROUP, **SMALL})):
        assert (refused.field, "'nodestate reserve'" in refused.reason) == ("members", True)
    refused = group_refusal({**SMALL, "count": 3})
    assert (refused.field, "'nodestate boot'" in refused.reason) == ("resources", True)
    assert group_refusal({"hold_s": 5}).field == "members"
    within = group_refusal({"members": [GROUP]})
    assert (within.field, within.reason.split(";")[0]) == ("members[0].hold_s", "unknown field")


def test_error_of_an_invalid_choice_lists_the_choices() -> None:
    """Most of the invalid ones lack a hyphen."""
    wrong = {"name": "web", "policy": "antiaffinity"}
    policies = "affinity or anti-affinity or soft-affinity or soft-anti-affinity"
    assert refusal({**SMALL, "group": wrong}).reason == f"invalid enum value 'antiaffinity'; want {policies}"
    assert str(group_refusal({"members": [SMALL], "group": wrong})).endswith(policies)
    assert str(group_refusal({"members": [{**SMALL, "group": wrong}]})).endswith(policies)
    right = {"name": "web", "policy": "affinity"}
    spread = refusal({**SMALL, "group": right, "spread_by": "rack"})
    assert str(spread) == "spread_by: invalid enum value 'rack'; want zone or aggregate"
