import pandas as pd

from bft_trl.comparison.curves import history_table, plot_history


def test_one_row_per_step():
    history = [
        {"step": 0, "epoch": 0, "eval_nll": 3.0},
        {"step": 2, "epoch": 1, "loss": 0.5, "nll": 2.5},
        {"step": 2, "epoch": 1, "eval_nll": 2.0},
    ]
    table = history_table(history)
    assert table["step"].tolist() == [0, 2]
    assert table["eval_nll"].tolist() == [3.0, 2.0]
    assert table["nll"].tolist()[1] == 2.5
    assert history_table([]).empty


def test_plot_formats_and_little_data(tmp_path):
    table = pd.DataFrame({"step": [1], "nll": [2.0]})
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        plot_history(table, tmp_path / f"p{suffix}", title="t")
        assert (tmp_path / f"p{suffix}").read_bytes().startswith(start)
    plot_history(history_table([]), tmp_path / "empty.png", title="t")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.png", "p.png", "p.svg"]
