"""Steps: done once, repeated when something before them changed."""

from dina_lrm.demo.steps import Steps, fingerprint
from dina_lrm.report import SamplePicture


def run_two(folder, settings_a, settings_b, done):
    lines = []
    steps = Steps(folder, 2, lines.append)

    def work(name):
        done.append(name)
        return SamplePicture(prompt=name, picture="x")

    found = [
        steps.run("a", "First", SamplePicture, settings_a, lambda: work("a")),
        steps.run("b", "Second", SamplePicture, settings_b, lambda: work("b")),
    ]
    return found, lines, steps


def test_a_finished_step_is_taken_from_disk(tmp_path):
    done = []
    first, _, _ = run_two(tmp_path, {}, {}, done)
    second, lines, steps = run_two(tmp_path, {}, {}, done)
    assert done == ["a", "b"]
    assert first == second
    assert lines[0].startswith("[1/2] First: done before")
    assert [t.name for t in steps.times] == ["a", "b"]


def test_a_changed_setting_repeats_its_step_and_all_after_it(tmp_path):
    done = []
    run_two(tmp_path, {"x": 1}, {"y": 1}, done)
    run_two(tmp_path, {"x": 1}, {"y": 2}, done)
    assert done == ["a", "b", "b"]
    run_two(tmp_path, {"x": 2}, {"y": 2}, done)
    assert done == ["a", "b", "b", "a", "b"]


def test_a_torn_file_is_no_result(tmp_path):
    done = []
    run_two(tmp_path, {}, {}, done)
    path = tmp_path / "steps" / "a.json"
    path.write_text(path.read_text()[:40])
    run_two(tmp_path, {}, {}, done)
    assert done == ["a", "b", "a"]


def test_a_result_of_another_shape_is_no_result(tmp_path):
    done = []
    run_two(tmp_path, {}, {}, done)
    path = tmp_path / "steps" / "b.json"
    path.write_text(path.read_text().replace('"picture"', '"painting"'))
    run_two(tmp_path, {}, {}, done)
    assert done == ["a", "b", "b"]


def test_a_step_that_is_always_done(tmp_path):
    lines = []
    steps = Steps(tmp_path, 1, lines.append)
    assert steps.always("r", "Report", lambda: 7) == 7
    assert lines == ["[1/1] Report"] and steps.times[0].name == "r"


def test_fingerprints_know_values_and_not_their_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
