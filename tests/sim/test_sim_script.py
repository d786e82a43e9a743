"""The fate of requests, and the settings it comes from."""

from pathlib import Path
from statistics import median

import pytest

from llmbatch.sim.distributions import fixed, parse_distribution
from llmbatch.sim.options import SimOptions, sim_options_from
from llmbatch.sim.problems import FAULTS
from llmbatch.sim.script import Fate, Rule, fate_key, fate_of, read_script, scripted_fault

LOGNORMAL = parse_distribution("lognormal:median=1.2,sigma=0.6,tail=0.01x20")


def fate(key: str, **faults: float) -> Fate:
    length = parse_distribution("uniform:low=5,high=50")
    return fate_of(key, latency=LOGNORMAL, first_token=fixed(0.1), output_tokens=length, faults=faults)


def test_fate_depends_on_seed_prompt_and_sighting_alone():
    key = fate_key(7, "abc", 0)
    assert fate(key, quota=0.5) == fate(key, quota=0.5)
    others = [fate_key(8, "abc", 0), fate_key(7, "abd", 0), fate_key(7, "abc", 1)]
    assert all(fate(other).latency_s != fate(key).latency_s for other in others)


def test_latencies_have_the_median_and_the_tail_asked_for():
    values = sorted(fate(fate_key(1, "p", i)).latency_s for i in range(20_000))
    assert median(values) == pytest.approx(1.2, rel=0.03)
    assert sum(value > 12 for value in values) / len(values) == pytest.approx(0.0086, abs=0.003)


def test_faults_come_at_their_rates_and_exclude_each_other():
    kinds = [fate(fate_key(1, "p", i), **{"429": 0.1, "stall": 0.02}).fault for i in range(20_000)]
    assert kinds.count("429") / len(kinds) == pytest.approx(0.1, abs=0.01)
    assert kinds.count("stall") / len(kinds) == pytest.approx(0.02, abs=0.005)
    assert kinds.count(None) + kinds.count("429") + kinds.count("stall") == len(kinds)


def test_output_length_stays_in_its_bounds():
    lengths = [fate(fate_key(1, "p", i)).output_tokens for i in range(500)]
    assert all(length is not None and 5 <= length <= 50 for length in lengths)
    assert len(set(lengths)) > 20


@pytest.mark.parametrize(
    ("rule", "n", "prompt", "seen", "strikes"),
    [
        (Rule("429", n=3), 3, "x", 0, True),
        (Rule("429", n=3), 4, "x", 0, False),
        (Rule("500", prompt="parcel"), 1, "the parcel came", 9, True),
        (Rule("500", prompt="parcel"), 1, "the letter came", 0, False),
        (Rule("500", prompt="parcel", times=2), 1, "the parcel came", 1, True),
        (Rule("500", prompt="parcel", times=2), 1, "the parcel came", 2, False),
    ],
)
def test_script_rules(rule: Rule, n: int, prompt: str, seen: int, strikes: bool):
    assert (scripted_fault([rule], n, prompt, seen) == rule.fault) is strikes


def test_first_matching_rule_wins():
    assert scripted_fault([Rule("500", n=1), Rule("429", prompt="a")], 1, "a", 0) == "500"


def test_script_file_is_read(tmp_path: Path):
    file = tmp_path / "script.jsonl"
    file.write_text('{"n": 3, "fault": "429"}\n\n{"prompt": "parcel", "fault": "reset-after", "times": 1}\n')
    assert read_script(file) == (Rule("429", n=3), Rule("reset-after", prompt="parcel", times=1))


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"fault": "429"}', '{"n": 0, "fault": "429"}', '{"n": 1, "fault": "nope"}', '{"n": 1, "x": 1}']
)
def test_bad_script_line_is_named(tmp_path: Path, line: str):
    file = tmp_path / "script.jsonl"
    file.write_text('{"n": 1, "fault": "500"}\n' + line)
    with pytest.raises(ValueError, match=r"script\.jsonl:2: "):
        read_script(file)


def test_options_are_read_from_strings(tmp_path: Path):
    options = sim_options_from(
        {
            "latency": "0.4",
            "first-token": "uniform:low=0.1,high=0.2",
            "tokens_per_s": "50",
            "rpm": "500",
            "fault": "429=0.01,reset-after=0.001",
            "no-headers": "true",
            "models": "a, b",
            "ledger": str(tmp_path / "bills"),
            "port": "0",
        }
    )
    assert options == SimOptions(
        latency=fixed(0.4),
        first_token=parse_distribution("uniform:low=0.1,high=0.2"),
        tokens_per_s=50.0,
        rpm=500.0,
        faults={"429": 0.01, "reset-after": 0.001},
        headers=False,
        models=("a", "b"),
        ledger=tmp_path / "bills",
    )
    assert sim_options_from({}) == SimOptions()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("latncy", "1", "no such option; it has port"),
        ("latency", "-1", "latency: .* 0 or more"),
        ("latency", "nan", "latency: .* 0 or more"),
        ("latency", "soon", "latency: .*'soon' is not a number; write NUMBER"),
        ("latency", "normal:mean=1", "no distribution is called 'normal'"),
        ("latency", "lognormal:median=1", "takes median and sigma"),
        ("latency", "lognormal:median=1,sigma=1,tail=2x20", "rate of a tail"),
        ("latency", "lognormal:median", "not name=value"),
        ("latency", "uniform:low=2,high=1", "low is above high"),
        ("rpm", "0", "rpm: must be above 0"),
        ("rpm", "inf", "rpm: must be above 0, and finite"),
        ("tpm", "many", "tpm: "),
        ("fault", "429", "KIND=RATE"),
        ("fault", "teapot=0.1", "no fault is called 'teapot'; the kinds are 429"),
        ("fault", "429=0.6,500=0.6", "add up to at most 1"),
        ("max-inflight", "0", "whole number from 1"),
        ("no-headers", "maybe", "true or false"),
        ("retry-after", "1\r\nx: y", "printable ASCII"),
        ("script", "/nonexistent/script", "No such file"),
        ("port", "70000", "between 0 and 65535"),
    ],
)
def test_nonsense_is_refused_with_its_reason(name: str, text: str, says: str):
    with pytest.raises(ValueError, match=says):
        sim_options_from({name: text})


def test_every_fault_can_be_asked_for():
    for kind in FAULTS:
        assert sim_options_from({"fault": f"{kind}=1"}).faults == {kind: 1.0}
