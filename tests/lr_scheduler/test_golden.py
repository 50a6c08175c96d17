"""Every policy has reference values, found by its name.

NeMo's and OpenSeq2Seq's are in one file each (test_nemo.py, test_openseq2seq.py); any other policy has a file of its
own, tests/golden/schedules/<name>.json, or the table below.
"""

import pytest
from policies import GOLDEN, POLICIES, golden_cases, make_optimizer

from lightning_novograd.registry import get_scheduler

# By hand from the formula in NVIDIA's common/optimizers.py: warmup, hold, then half the LR for each three steps
BY_HAND = {
    "WarmupHoldAnnealExponential": [
        {
            "args": {"max_steps": 10, "gamma": 0.5, "num_decays": 2, "warmup_steps": 2, "hold_steps": 2},
            "base_lr": 0.1,
            "lr": [0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.0],
        },
        {
            "args": {"max_steps": 4, "gamma": 0.1, "num_decays": 4, "min_lr": 0.002},
            "base_lr": 0.1,
            "lr": [0.1, 0.01, 0.002, 0.002, 0.002, 0.002],
        },
    ]
}
CASES = [(name, case) for name in POLICIES for case in golden_cases(name) + BY_HAND.get(name, [])]


def test_every_policy_has_reference_values(golden):
    of_nemo = {*golden("schedules.json")["policies"]}
    of_openseq2seq = {case["policy"] for case in golden("schedules_openseq2seq.json")["cases"]} - {"fixed_lr"}
    known = of_nemo | {get_scheduler(policy).name for policy in of_openseq2seq} | {name for name, _ in CASES}
    assert known == {*POLICIES}, f"neither in {GOLDEN} nor in another table"


def test_every_file_belongs_to_a_policy():
    assert {path.stem for path in GOLDEN.glob("*.json")} <= {*POLICIES}


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case['args']}" for name, case in CASES])
def test_values(name, case):
    scheduler = POLICIES[name](make_optimizer([case["base_lr"]]), **case["args"])
    lrs = [scheduler.lr_at(step, case["base_lr"]) for step in range(len(case["lr"]))]
    assert lrs == pytest.approx(case["lr"], rel=1e-12, abs=1e-12)
