from app.ui.charts import KINDS, MAX_BARS, MAX_POINTS, bars, cell, lines
from app.ui.forms import form_of_spec
from app.ui.job import _losses
from app.ui.rendering import duration, query_of, size_in_words, words


def test_bars_are_as_long_as_their_values():
    drawn = bars([("layer1", 0.8), ("layer2", 0.4), ("layer3", -0.1)], marked=["layer1"])
    longest = drawn.rows[0].width
    assert [row.width for row in drawn.rows] == [longest, longest / 2, 0]
    assert [row.marked for row in drawn.rows] == [True, False, False]
    assert drawn.left + longest < drawn.width
    assert len(bars([(str(place), 1.0) for place in range(50)]).rows) == MAX_BARS
    assert bars([]) is None


def test_lines_share_their_axes_and_leave_out_what_is_no_number():
    drawn = lines({"a": [(0, 1.0), (10, 3.0)], "b": [(0, float("nan")), (5, 2.0), (10, 2.0)], "one": [(0, 9.0)]})
    assert [line.name for line in drawn.lines] == ["a", "b"]
    assert [value for _, value in drawn.y_ticks] == [3.0, 2.0, 1.0]
    assert drawn.x_last == 10
    start, end = (float(point.split(",")[1]) for point in drawn.lines[0].points.split())
    assert start > end, "larger values lie higher"
    assert lines({"flat": [(0, 1.0), (1, 1.0)]}).lines[0].last == 1.0
    assert lines({}) is None


def test_long_curves_are_thinned_to_their_last_point_and_old_ones_left_out():
    points = [(step, float(step)) for step in range(10_000)]
    drawn = lines({str(number): points for number in range(9)})
    assert [line.name for line in drawn.lines] == ["5", "6", "7", "8"]
    assert len(drawn.lines) == len(KINDS)
    assert all(len(line.points.split()) <= MAX_POINTS + 1 for line in drawn.lines)
    assert drawn.lines[0].last == 9999.0


def test_a_cell_goes_from_left_to_right():
    edges = [{"from": "input", "to": "2", "operation": "conv"}, {"from": "2", "to": "10", "operation": "pool"},
             {"from": "10", "to": "output", "operation": "skip"}]  # fmt: skip
    drawn = cell({"block": "layer1", "edges": edges})
    assert [node.name for node in drawn.nodes] == ["input", "2", "10", "output"]
    assert [node.x for node in drawn.nodes] == sorted(node.x for node in drawn.nodes)
    assert drawn.words == "conv from input to 2; pool from 2 to 10; skip from 10 to output"


def test_the_form_knows_kinds_limits_and_choices():
    fields = {field.path: field for section in form_of_spec() for field in section.fields}
    assert (fields["repair.budget_seconds"].kind, fields["repair.budget_seconds"].placeholder) == ("number", "auto")
    assert (fields["datasets.allow_leak"].kind, fields["datasets.allow_leak"].default) == ("switch", False)
    assert "archrepair" in fields["repair.method"].choices
    assert "model_id" not in fields, "it stands beside the files"
    assert fields["gates"].kind == "lines"


def test_numbers_are_said_as_people_say_them():
    assert [duration(seconds) for seconds in (None, 0.04, 12, 75, 3700, 90_000)] == [
        "–", "0.0 s", "12 s", "1 min 15 s", "1 h 1 min", "1 d 1 h"]  # fmt: skip
    assert [size_in_words(size) for size in (None, 12, 2048, 5 * 1024**3)] == ["–", "12 B", "2.0 KiB", "5.0 GiB"]
    assert words("`auto` <b>") == "<code>auto</code> &lt;b&gt;"
    assert query_of({"status": "failed", "cursor": "4"}, cursor=None) == "?status=failed"


def test_a_candidate_that_is_trained_again_begins_its_line_again_and_controls_draw_none():
    def told(phase, message, step, loss):
        return {"phase": phase, "message": message, "step": step, "loss": loss}

    progress = [
        told("repairing", "a: step 1 of 32", 1, 0.9),
        told("repairing", "a: step 32 of 32", 32, 0.8),
        told("repairing", "b: step 1 of 32", 1, 0.7),
        told("repairing", "a: step 1 of 240", 1, 0.6),
        told("repairing", "walking back", None, None),
        told("repairing", "a: step 240 of 240", 240, 0.5),
        told("verifying", "b: step 240 of 240", 240, 0.4),
    ]
    assert _losses(progress) == {"b": [(1, 0.7)], "a": [(1, 0.6), (240, 0.5)]}
