from __future__ import annotations

import pytest

from bus.errors import InvalidName, MalformedMessage
from bus.format import subjects
from bus.format.subjects import Subjects, Work, live_copy

HOSTILE = [
    "",
    "*",
    ">",
    "a.b",
    "..",
    "a b",
    "a\tb",
    "a\r\nb",
    "a\n",
    "\x00",
    "a\x00",
    "a:b",
    "\udcff",
    "\ud800",
    "$JS",
    "_INBOX",
    "-a",
    "Price",
    "x" * 64,
    "x" * 300,
    "\u0661\u0662",
    "\uff11",
    "pr\u0456ce",
    "\u202ename",
    "na\u200bme",
    "caf\u00e9",
    "../x",
    "%2e",
]
NAMES = ["a", "0", "price", "git_collect", "a-b", "9-", "x" * 63]


@pytest.mark.parametrize("text", NAMES)
def test_a_name_is_returned_as_it_is(text: str) -> None:
    assert subjects.name(text, "agent") == text
    assert subjects.phase_key(text) == text
    assert subjects.capability(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_what_nats_could_misread_is_not_a_name(text: str) -> None:
    with pytest.raises(InvalidName) as caught:
        subjects.name(text, "agent")
    said = str(caught.value)
    assert said.startswith("agent ")
    assert said.isprintable(), "what is refused must not act on the terminal that shows the refusal"
    said.encode()


@pytest.mark.parametrize("text", [text for text in HOSTILE if text not in {"a.b", "-a"}])
def test_what_nats_could_misread_is_no_capability_and_no_phase_key(text: str) -> None:
    with pytest.raises(InvalidName):
        subjects.capability(text)
    with pytest.raises(InvalidName):
        subjects.phase_key(text)


@pytest.mark.parametrize(("key", "text"), [(-8, "-8"), ("-8", "-8"), (0, "0"), (12, "12"), ("write", "write")])
def test_a_phase_key_is_a_name_or_a_number_that_may_be_negative(key: str | int, text: str) -> None:
    assert subjects.phase_key(key) == text


@pytest.mark.parametrize("key", ["--8", "-", "8.5", True, "a:1"])
def test_other_phase_keys_are_refused(key: str | int) -> None:
    with pytest.raises(InvalidName, match="phase key"):
        subjects.phase_key(key)


@pytest.mark.parametrize("text", ["a..b", ".a", "a.", "a.*", "a.>", f"{'x' * 63}.{'y' * 63}.z"])
def test_a_capability_is_names_joined_by_dots(text: str) -> None:
    with pytest.raises(InvalidName, match="capability"):
        subjects.capability(text)


def test_a_dotted_capability_is_one_token() -> None:
    assert subjects.capability_token("code.analyse.python") == "code:analyse:python"


@pytest.mark.parametrize("namespace", ["", "Bus", "a.b", "*", "$SYS"])
def test_a_namespace_is_a_name(namespace: str) -> None:
    with pytest.raises(InvalidName, match="namespace"):
        Subjects(namespace)


def test_everything_of_a_namespace_carries_its_name() -> None:
    names = Subjects("lab")
    assert (names.stream, names.work_stream, names.leases_bucket) == ("LAB", "LAB_WORK", "LAB_LEASES")
    assert names.run("r-1") == "lab.run.r-1"
    assert names.agent("pricing", "pricing-1") == "lab.agent.pricing.pricing-1"
    assert names.dead("git.collect") == "lab.dead.git:collect"
    assert live_copy(names.run("r-1")) == "live.lab.run.r-1"
    assert all(subject.startswith("lab.") for subject in names.logged())


def test_pings_and_beats_are_not_in_the_log() -> None:
    names = Subjects()
    logged = [subject.removesuffix(">") for subject in names.logged()]
    spoken = [names.ping("i"), names.beat("i"), names.who("c"), names.everyone, names.live]
    assert not [subject for subject in spoken for prefix in logged if subject.startswith(prefix)]
    assert names.run("r").startswith(tuple(logged))


def test_the_run_is_read_back_from_its_subject() -> None:
    names = Subjects()
    assert names.run_of(names.run("release-4f")) == "release-4f"


@pytest.mark.parametrize("text", ["", "a.b", "*", ">", "a b", "$JS"])
def test_no_subject_is_made_of_a_hostile_name(text: str) -> None:
    names = Subjects()
    makers = (names.run, names.ping, names.beat, names.ops)
    for make in makers:
        with pytest.raises(InvalidName):
            make(text)
    with pytest.raises(InvalidName):
        names.agent("agent", text)
    with pytest.raises(InvalidName):
        names.agent(text, "instance")


@pytest.mark.parametrize(
    "work",
    [
        Work("price", "r-1", "quote", None, 1),
        Work("code.analyse", "r-1", "analyse", 0, 1),
        Work("code.analyse", "r-1", "-8", 12, 3),
        Work("x" * 63, "y" * 63, "z" * 63, 99_999, 12),
        Work("price", "r-1", "quote", None, 1, "high", "4f2a", 3),
    ],
)
def test_a_work_subject_is_read_back_as_the_work_it_was_made_of(work: Work) -> None:
    names = Subjects()
    subject = names.work(work)
    assert names.parse_work(subject) == work
    assert subject.startswith(names.work_for(work.capability).removesuffix(">"))


@pytest.mark.parametrize("hostile", ["", "a.b", "*", ">", "a b"])
def test_no_work_subject_is_made_of_a_hostile_run_or_phase(hostile: str) -> None:
    names = Subjects()
    with pytest.raises(InvalidName):
        names.work(Work("price", hostile, "quote", None, 1))
    with pytest.raises(InvalidName):
        names.work(Work("price", "r-1", hostile, None, 1))


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "bus",
        "bus.work",
        "bus.run.r-1",
        "bus.work.price.normal.0.0.r-1.quote",
        "bus.work.price.normal.0.0.r-1.quote.1.2",
        "bus.work.price.r-1.quote.1",
        "bus.work.price..0.0.r-1.quote.1",
        "bus.work.price.normal..0.r-1.quote.1",
        "bus.work.price.normal.0.a.r-1.quote.1",
        "bus.work.price.normal.0.01.r-1.quote.1",
        "lab.work.price.normal.0.0.r-1.quote.1",
        "bus.mail.price.normal.0.0.r-1.quote.1",
        "bus.work.price.normal.0.0.r-1.quote.one",
        "bus.work.price.normal.0.0.r-1.quote.",
        "bus.work.price.normal.0.0.r-1.quote.01",
        "bus.work.price.normal.0.0.r-1.quote.+1",
        "bus.work.price.normal.0.0.r-1.quote.1_0",
        "bus.work.price.normal.0.0.r-1.quote.\uff11",
        "bus.work.price.normal.0.0.r-1.quote." + "9" * 5000,
        "bus.work.price.normal.0.0.r-1.quote:.1",
        "bus.work.price.normal.0.0.r-1.quote:01.1",
        "bus.work.price.normal.0.0.r-1.quote:a.1",
        "bus.work.price.normal.0.0.r-1.quote:1:2.1",
        "bus.work.price.normal.0.0.r-1.:1.1",
        "bus.work..normal.0.0.r-1.quote.1",
        "bus.work.price.normal.0.0..quote.1",
        "bus.work.*.normal.0.0.r-1.quote.1",
        "bus.work.>.normal.0.0.r-1.quote.1",
        "bus.work.Price.normal.0.0.r-1.quote.1",
        "bus.work.price.normal.0.0.r 1.quote.1",
        "bus.work.price.normal.0.0.r-1.quote\udcff.1",
    ],
)
def test_any_other_subject_is_malformed(subject: str) -> None:
    with pytest.raises(MalformedMessage, match="work subject"):
        Subjects().parse_work(subject)


@pytest.mark.parametrize("place", ["0.r.p.0", "0.r.p.-1", "0.r.p:-1.1", "-1.r.p.1"])
def test_attempts_count_from_1_items_and_rows_from_0(place: str) -> None:
    with pytest.raises(MalformedMessage, match="work subject"):
        Subjects().parse_work(f"bus.work.c.normal.0.{place}")
