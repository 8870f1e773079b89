"""The settings: where they are read, what overrides them, what is refused."""

from pathlib import Path

import pytest

from namemovers.settings import Settings, settings, slug


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("MODEL", "N", "SEED", "CORRUPTION", "DEVICE"):
        monkeypatch.delenv(name, raising=False)


def write(folder, text):
    (folder / "settings.ini").write_text(text)
    return folder


def test_defaults_without_a_file(tmp_path):
    s = settings(tmp_path)
    assert (s.model, s.n, s.seed, s.corruption, s.device) == ("mini", 50, 0, "switch_subjects", None)
    assert s.results == tmp_path / "results" / "mini"


def test_reads_the_file_from_a_folder_below(tmp_path):
    write(tmp_path, "[study]\nmodel = gpt2\nn = 7\nseed = 3\ncorruption = other\ndevice = cpu\n")
    below = tmp_path / "nbs" / "core"
    below.mkdir(parents=True)
    assert settings(below) == Settings("gpt2", 7, 3, "other", "cpu", tmp_path)
    assert settings(below).results == tmp_path / "results" / "gpt2"


def test_reads_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, "[study]\nn = 9\n"))
    assert settings().n == 9


def test_the_environment_overrides(tmp_path, monkeypatch):
    write(tmp_path, "[study]\nmodel = gpt2\nn = 7\n")
    monkeypatch.setenv("N", "200")
    monkeypatch.setenv("MODEL", "me/other")
    monkeypatch.setenv("DEVICE", "")
    s = settings(tmp_path)
    assert (s.model, s.n, s.device) == ("me/other", 200, None)
    assert s.results.name == "me--other"


@pytest.mark.parametrize(
    "text, words",
    [
        ("[study]\nn = many\n", ["n must be", "'many'"]),
        ("[study]\nn = 0\n", ["n must be", "at least 1"]),
        ("[study]\nn = 2.5\n", ["n must be", "'2.5'"]),
        ("[study]\nseed = -1\n", ["seed must be", "at least 0"]),
        ("[study]\nmodle = mini\n", ["modle", "model"]),
        ("no section\n", ["settings.ini", "[study]"]),
    ],
)
def test_bad_files_give_one_line(tmp_path, text, words):
    with pytest.raises(ValueError) as e:
        settings(write(tmp_path, text))
    assert all(w in str(e.value) for w in words) and "\n" not in str(e.value)


def test_bad_environment_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("N", "x")
    with pytest.raises(ValueError, match="N"):
        settings(tmp_path)


def test_percent_signs_are_plain_text(tmp_path):
    assert settings(write(tmp_path, "[study]\nmodel = a%b\n")).model == "a%b"


def test_slug_is_a_safe_folder_name(tmp_path):
    (tmp_path / "my model").mkdir()
    assert slug(str(tmp_path / "my model")) == "my--model"
    for name in ("mini", "EleutherAI/pythia-70m", "../../etc", "a b", "..", "/"):
        s = slug(name)
        assert s and "/" not in s and s not in (".", "..") and Path(s).name == s


def test_the_repository_s_own_settings_are_valid():
    s = settings(Path(__file__).parent)
    assert s.root == Path(__file__).parents[1]
