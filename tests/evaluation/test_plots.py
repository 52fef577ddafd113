"""Plots: what is in the files, that they are the same bytes each time, and what is refused."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from task_scores import clustering, noisy, score

from lbr_st.cli import main
from lbr_st.errors import LBRError
from lbr_st.evaluation.scores import RECORDS, write_record, write_results

pytest.importorskip("matplotlib")

from lbr_st.evaluation.plots import plot_embedding_size, plot_tasks, plot_training

ODD = "org/model_$1$ & <b>"


def texts(path):
    """The words in an SVG, as a search in a browser finds them."""
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    return [" ".join("".join(node.itertext()).split()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def check(paths, folder):
    from PIL import Image

    png, svg = paths
    assert [path.name for path in folder.iterdir() if path not in paths] == []
    with Image.open(png) as image:
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20
        assert image.text["Title"]
        assert image.text["Description"]
    content = svg.read_text(encoding="utf-8")
    assert "<title>" in content
    assert not re.search(r"<dc:date>|Matplotlib v", content)


def scores():
    made = [score("baseline/bm25", task, noisy(1, 60)) for task in ("one", "two")]
    for size in (32, 64, 128):
        how = {"truncate_dim": size} if size < 128 else {}
        made += [score("org/ours", task, noisy(size, 60), embed_dim=size, experiment=how) for task in ("one", "two")]
    return [*made, score(ODD, "one", noisy(2, 60, 0.3), embed_dim=64), clustering("org/ours", 0.4)]


@pytest.fixture
def drawn(monkeypatch):
    """Return the figures that would be written."""
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def test_by_task(tmp_path):
    paths = plot_tasks(scores(), tmp_path / "tasks")
    check(paths, tmp_path)
    found = texts(paths[1])
    for name in ("baseline/bm25", "org/ours", "org/ours (truncate_dim=32)", ODD, "one", "two", "60 queries"):
        assert name in found
    assert "clusters" not in found


def test_points_lie_where_the_scores_are(tmp_path, drawn):
    given = scores()
    plot_tasks(given, tmp_path / "tasks")
    [axes] = drawn[-1].axes
    [bars] = [bars for bars in axes.containers if bars.get_label() == "org/ours (truncate_dim=64)"]
    line, _, [spans] = bars
    wanted = {s.task: s for s in given if s.name == "org/ours (truncate_dim=64)"}
    assert list(line.get_xdata()) == [wanted["one"].ndcg_at_10, wanted["two"].ndcg_at_10]
    assert [round(place) for place in line.get_ydata()] == [0, 1]
    for span, task in zip(spans.get_segments(), ("one", "two"), strict=True):
        assert span[:, 0] == pytest.approx(wanted[task].confidence_interval())

    plot_embedding_size(given, tmp_path / "sizes")
    axes = drawn[-1].axes[0]
    [bars] = [bars for bars in axes.containers if bars.get_label() == "org/ours"]
    assert bars[0].get_xdata() == pytest.approx([32, 64, 128], rel=0.1)
    ours = {s.embed_dim: s.ndcg_at_10 for s in given if s.model == "org/ours" and s.task == "one"}
    assert list(bars[0].get_ydata()) == [ours[32], ours[64], ours[128]]
    [level] = [line for line in axes.lines if line.get_label() == "baseline/bm25"]
    assert set(level.get_ydata()) == {given[0].ndcg_at_10}


def test_other_data_is_another_task(tmp_path):
    given = [score("a/a", "one", noisy(1, 50)), score("b/b", "one", noisy(2, 50), data="data-two")]
    found = texts(plot_tasks(given, tmp_path / "tasks")[1])
    assert {"one (data-one)", "one (data-two)"} <= set(found)


def test_by_embedding_size(tmp_path):
    paths = plot_embedding_size(scores(), tmp_path / "sizes")
    check(paths, tmp_path)
    found = texts(paths[1])
    for name in ("baseline/bm25", "org/ours", ODD, "one (60 queries)", "two (60 queries)", "32", "64", "128"):
        assert name in found
    assert not any("truncate_dim" in text for text in found)


def write_logs(work, **logs):
    for stage, log in logs.items():
        (work / stage).mkdir(parents=True)
        (work / stage / "training_log.json").write_text(json.dumps(log))
    return work


def entries(count, **terms):
    made = {"grad_norm": 1.0, "learning_rate": 0.1, "epoch": 0.5}
    return [{"loss": 5 - i / count, **terms, **made, "step": 10 * (i + 1)} for i in range(count)]


def test_training(tmp_path):
    learn = [
        *entries(200, target=3.0, context=1.0, rate=0.1),
        {"eval_bottleneck_gain": 0.2, "step": 1000},
        {"eval_bottleneck_gain": 0.3, "step": 2000},
        {"train_loss": 4.0, "step": 2000},
    ]
    work = write_logs(tmp_path / "work", learn=learn, represent=[*entries(9), {"eval_loss": 4.5, "step": 50}])
    paths = plot_training(work, tmp_path / "plots" / "training")
    check(paths, tmp_path / "plots")
    found = texts(paths[1])
    for name in ("Stage 1, learn", "Stage 2, represent", "target", "context", "rate", "bottleneck gain"):
        assert name in found
    assert {"loss", "loss (mean of 5 logged values)", "held-out loss"} <= set(found)
    assert not {"grad_norm", "learning_rate", "epoch"} & set(found)


def test_training_curves_are_the_logged_values(tmp_path, drawn):
    log = [{"loss": value, "target": value, "step": step} for step, value in ((1, 3.0), (2, 2.5), (4, float("nan")))]
    write_logs(tmp_path, represent=[*log, {"loss": 1.0, "target": 1.0, "step": 8}])
    plot_training(tmp_path, "unused")
    [axes] = drawn[-1].axes  # no gain was logged: no second axis
    [line] = axes.lines  # the only term is the loss: drawn once
    np.testing.assert_equal(line.get_xydata(), [(1, 3), (2, 2.5), (4, np.nan), (8, 1)])


def test_steps_are_whole_numbers(tmp_path, drawn):
    write_logs(tmp_path, represent=[{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 3}])
    plot_training(tmp_path, "unused")
    [axes] = drawn[-1].axes
    assert {float(place) % 1 for place in axes.get_xticks()} == {0.0}


def test_the_score_of_each_stage_stands_beside_the_curves(tmp_path, drawn):
    work = write_logs(tmp_path / "work", learn=entries(5), represent=entries(5))
    stages = ["BM25", "after stage 1, learn", "after stage 2, represent (released)"]
    made = [score(f"a/{number}", "one", noisy(number, 60)) for number in range(3)]
    write_results(work / "results.json", list(zip(stages, made, strict=True)))
    plot_training(work, "unused")
    [axes] = [axes for axes in drawn[-1].axes if axes.get_ylabel() != "loss"]
    bm25, points = made[0], made[1:]
    [level] = [line for line in axes.lines if line.get_label() == "BM25"]
    assert set(level.get_ydata()) == {bm25.ndcg_at_10}
    [bars] = axes.containers
    line, _, [spans] = bars
    assert list(line.get_ydata()) == [point.ndcg_at_10 for point in points]
    for span, point in zip(spans.get_segments(), points, strict=True):
        assert span[:, 1] == pytest.approx(point.confidence_interval())
    assert [text.get_text().replace("\n", " ") for text in axes.get_xticklabels()] == stages[1:]


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    import matplotlib

    work = write_logs(tmp_path / "work", learn=[*entries(20), {"eval_bottleneck_gain": 0.2, "step": 10}])

    def draw(folder):
        paths = [*plot_tasks(scores(), folder / "a"), *plot_embedding_size(scores(), folder / "b")]
        return [path.read_bytes() for path in [*paths, *plot_training(work, folder / "c")]]

    first = draw(tmp_path / "first")
    with matplotlib.rc_context({"font.size": 22, "svg.fonttype": "path", "savefig.dpi": 50}):
        assert draw(tmp_path / "second") == first
        assert matplotlib.rcParams["font.size"] == 22


def test_what_cannot_be_plotted(tmp_path):
    with pytest.raises(LBRError, match="no score has queries"):
        plot_tasks([clustering("o/m", 0.5)], tmp_path / "tasks")
    with pytest.raises(LBRError, match="two sizes"):
        plot_embedding_size([score("o/m", "one", [0.5, 0.6], embed_dim=64)], tmp_path / "sizes")
    write_logs(tmp_path / "work", learn=[{"train_loss": 1.0, "step": 3}])
    with pytest.raises(LBRError, match="no stage has been trained"):
        plot_training(tmp_path / "work", tmp_path / "training")
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_the_command(tmp_path, capsys):
    work = write_logs(tmp_path / "work", learn=entries(5))
    for number, item in enumerate(scores()[:2]):
        write_record(tmp_path / "results" / RECORDS / f"{number}.json", item)
    flags = ["--results", str(tmp_path / "results"), "--output", str(tmp_path / "plots")]
    assert main(["plot", *flags, "--training", str(work)]) == 0
    told = capsys.readouterr()
    written = {"tasks.png", "tasks.svg", "training.png", "training.svg"}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == written
    assert "no plot of embedding_size: there are not two sizes of embeddings" in told.err

    assert main(["plot", "--results", str(tmp_path / "none"), "--output", str(tmp_path / "none")]) == 1
    assert "nothing could be plotted" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()

    for number, item in enumerate(scores()):
        write_record(tmp_path / "results" / RECORDS / f"{number}.json", item)
    assert main(["plot", *flags]) == 0
    shown = texts(tmp_path / "plots" / "tasks.svg")
    assert "org/ours" in shown
    assert not [text for text in shown if "truncate_dim" in text]  # cut embeddings are in their own picture
