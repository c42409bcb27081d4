"""The command line: names of flags, unknown flags, and what starting it costs."""

import subprocess
import sys
import time

import pytest

from bft_trl.cli.main import main, normalize


def test_hyphens_and_underscores_in_flags_are_the_same():
    words = ["score", "--output-dir", "a-b", "--data-dir=x-y=z", "--no-load-in-4bit", "-x", "--", "plain-word"]
    assert normalize(words) == [
        *("score", "--output_dir", "a-b", "--data_dir=x-y=z", "--no-load_in_4bit", "-x", "--", "plain-word")
    ]
    assert normalize(["--no_load_in_4bit"]) == ["--no-load_in_4bit"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data-dri", "x"], "unrecognized arguments: --data_dri x; did you mean --data_dir?"),
        (["--limits", "3"], "did you mean --limit?"),
        (["--batch", "3"], "unrecognized arguments: --batch 3"),  # no abbreviations
        (["--zzz"], "unrecognized arguments: --zzz\n"),
        (["plain"], "unrecognized arguments: plain\n"),
    ],
)
def test_an_unknown_flag_fails_at_once_and_names_the_closest(flags, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["eval", "--tasks", "x", "--output_dir", "nowhere", "--model_name_or_path", "x", *flags])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bft_trl.comparison.compare", None)
    assert main(["compare", "x", "--baseline", "y", "--output_dir", str(tmp_path)]) == 2
    assert "(pip install -e '.[eval]')" in capsys.readouterr().err


def test_a_second_process_raises(tmp_path, capsys):
    held = (
        "import sys, time; from pathlib import Path; from bft_trl.io import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    out = str(tmp_path / "hard_samples")
    with subprocess.Popen([sys.executable, "-c", held, out], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        for command in (["compare", "x", "--baseline", "y", "--output_dir", out], ["hard-samples", str(tmp_path)]):
            assert main(command) == 2
            assert "another process is writing there" in capsys.readouterr().err
        other.kill()


def test_help_starts_in_half_a_second():
    code = (
        "import sys; from bft_trl.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'trl', 'pandas', 'numpy', 'transformers'} & set(sys.modules)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5
