"""Benchmarks compare like with like: every arm of the loss head has the same gradient."""

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import head
import isolated
import memory
from gpu import run


@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_the_arms_of_the_loss_head_agree(fraction):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 10, 6, generator=generator)
    weight = torch.randn(31, 6, generator=generator)
    labels = torch.randint(31, (2, 10), generator=generator)
    labels = torch.where(torch.arange(10) >= 10 * (1 - fraction), labels, -100)
    gradients = []
    for arm in ("reference", "trl", "trl_supervised", "frozen"):
        hidden = values.clone().requires_grad_()
        head.score(arm, hidden, weight, labels, chunk_bytes=2**20)
        gradients.append(hidden.grad)
    assert gradients[0].abs().max() > 1e-3
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-6, rtol=1e-4)


def test_running_out_of_memory_is_a_result(capsys, monkeypatch):
    monkeypatch.setattr(isolated.resource, "setrlimit", lambda *limits: None)  # it would limit the other tests too

    def greedy():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    isolated.answer(greedy, 1.0)
    assert capsys.readouterr().out == '{"out_of_memory": true}\n'

    def wrong():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        isolated.answer(wrong, 1.0)


def test_medians_leave_out_what_ran_out_of_memory(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("arm,seconds,out_of_memory\na,1,\na,5,\na,3,\nb,,True\n")
    assert isolated.medians(file, ["arm"], ["seconds"]).to_dict("records") == [{"arm": "a", "seconds": 3.0}]


def test_a_killed_run_leaves_the_old_rows(tmp_path, monkeypatch):
    """The new rows of part b replace the old ones once all are there; those of part a stay."""
    out = tmp_path / "rows.csv"
    out.write_text("part,arm,repeat,seconds\na,x,0,1\nb,x,0,2\n")
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('{\"seconds\": 3}')\nsys.exit('fails' in sys.argv[2])\n")
    with pytest.raises(RuntimeError, match="fails"):
        isolated.measure_all(script, [{"part": "b", "arm": "fails"}], repeats=1, memory_gib=1, out=out)
    assert "b,x,0,2" in out.read_text()
    isolated.measure_all(script, [{"part": "b", "arm": "y"}], repeats=2, memory_gib=1, out=out)
    rows = pd.read_csv(out)
    assert rows[["part", "arm", "seconds"]].to_numpy().tolist() == [["a", "x", 1], ["b", "y", 3], ["b", "y", 3]]


def test_growth_is_the_slope_after_the_warm_up():
    """40 KiB a step in the first quarter, then 3 KiB a step: from step 510, the first after it, to step 2,000."""
    steps = np.arange(10, 2001, 10)
    kib = 100_000 + np.where(steps <= 500, 40 * steps, 20_000 + 3 * (steps - 500))
    found = memory.growth(pd.DataFrame({"step": steps, "kib": kib}))
    assert found["n"] == 150
    assert found["slope"] == pytest.approx(3)
    assert found["first"] == pytest.approx((100_000 + 20_000 + 30) / 1024)
    assert found["last"] == pytest.approx((100_000 + 20_000 + 4_500) / 1024)


@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_the_interval_of_the_growth_covers_it(slope):
    """With noise correlated between neighboring samples, as of an allocator, at least 85 of 100 intervals cover it."""
    steps = np.arange(10, 2001, 10)
    covered = 0
    for seed in range(100):
        noise = np.convolve(np.random.default_rng(seed).normal(0, 300, len(steps) + 4), np.ones(5) / 5, "valid")
        found = memory.growth(pd.DataFrame({"step": steps, "kib": 700_000 + slope * steps + noise}))
        covered += found["low"] <= slope <= found["high"]
    assert covered >= 85


def test_a_leak_in_the_process_is_seen():
    """64 KiB that are kept at every step, in pages of their own: an allocator would reuse memory of other tests."""
    kept = []
    samples = []
    for step in range(0, 400, 2):
        kept.append(mmap.mmap(-1, 2 * 65_536))
        kept[-1].write(b"x" * 2 * 65_536)
        samples.append((step, isolated.resident() / 1024))
    found = memory.growth(pd.DataFrame(samples, columns=["step", "kib"]))
    assert found["slope"] == pytest.approx(64, rel=0.15)


# --- make gpu --------------------------------------------------------------------------------------------------------


def test_the_gpu_run_on_a_cpu(tmp_path):
    """With tiny shapes every part passes, and the summary has every target but that of the gene sets."""
    command = [sys.executable, run.__file__, "--device", "cpu", "--smoke", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = (tmp_path / "summary.md").read_text()
    for part in run.PARTS[:-1]:
        assert f"| {part} | passed |" in text
    for target in ("head, of two", "step, of TRL's", "peak memory, of TRL's", "BFT's own work"):
        assert f"| {target}" in text


def test_a_part_that_fails_or_does_not_end(tmp_path):
    failed = run.run_part("a", ["-c", "print('x | y'); raise SystemExit(3)"], 30, tmp_path / "a.log")
    assert (failed.result, failed.last_line) == ("failed, exit code 3", "x / y")
    ended = run.run_part("b", ["-c", "import time; time.sleep(60)"], 1, tmp_path / "b.log")
    assert ended.result == "out of time at 1 s"
    assert ended.seconds < 30


def test_targets_by_hand(tmp_path):
    """A head of 1.2 times its products, a step of 0.8 of SFT's, packing 1.5 times; out of memory is not a number."""
    (tmp_path / "head.csv").write_text(
        "vocabulary,width,fraction,arm,seconds,out_of_memory\n9,4,1,frozen,1.2,\n9,4,1,two_products,1,\n9,4,1,trl,,True\n"
    )
    (tmp_path / "step.csv.partial").write_text(
        "part,model,fraction,data,packing,arm,seconds,peak_bytes,tokens_per_second\n"
        "table,Qwen,1,,,bft_frozen,0.8,5,1\ntable,Qwen,1,,,trl_sft,1,4,1\n"
        "packing,,,gene sets,False,bft_frozen,1,1,100\npacking,,,gene sets,True,bft_frozen,1,1,150\n"
    )
    found = {target.name: (target.limit, target.value) for target in run.targets(tmp_path)}
    assert found == {
        "head, of two bare products": (1.25, 1.2),
        "step, of TRL's SFT": (0.9, 0.8),
        "peak memory, of TRL's SFT": (1.0, 1.25),
        "packed, of padded, tokens a second": (2.0, 1.5),
    }


def test_an_arm_that_fails_in_this_process_stops_no_other(tmp_path, capsys):
    def measure(case):
        if case["arm"] == "a":
            raise NotImplementedError("no kernel\nfor this card")
        return {"seconds": 2.0}

    out = tmp_path / "rows.csv"
    cases = [{"part": "p", "arm": arm} for arm in "ab"]
    assert not isolated.measure_all(Path("x.py"), cases, repeats=1, memory_gib=1, out=out, measure=measure)
    assert pd.read_csv(out)["error"].tolist()[0] == "NotImplementedError: no kernel"
    assert isolated.medians(out, ["arm"], ["seconds"]).to_dict("records") == [{"arm": "b", "seconds": 2.0}]
    assert "no kernel" in capsys.readouterr().err
