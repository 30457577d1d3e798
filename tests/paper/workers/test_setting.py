"""Who computes: from the environment or a file that no stage depends on."""

import pytest

from multishield.errors import UserError
from paper.workers.setting import Workers, wanted


@pytest.fixture
def config(project_root, monkeypatch):
    """Writes `.multishield/config`."""
    monkeypatch.chdir(project_root)
    for name in ("WORKERS", "GPUS", "PATIENCE"):
        monkeypatch.delenv(f"MULTISHIELD_{name}", raising=False)
    (project_root / ".multishield").mkdir(exist_ok=True)
    return (project_root / ".multishield" / "config").write_text


def test_this_process_does_everything_unless_somebody_asks_for_more(config):
    assert wanted().here


def test_the_file_is_read_and_the_environment_goes_before_it(config, monkeypatch):
    config("# my machine\nworkers: 4\ngpus: 0\n")
    assert wanted() == Workers(count=4, gpus=0.0)
    monkeypatch.setenv("MULTISHIELD_WORKERS", "head:6379")
    assert wanted() == Workers("head:6379", None, 0.0)
    monkeypatch.setenv("MULTISHIELD_WORKERS", "1")
    assert wanted().here
    monkeypatch.setenv("MULTISHIELD_WORKERS", "local")
    assert not wanted().here


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("workers: 0", "workers is '0'; accepted are a number of processes from 1"),
        ("workers: ray://head:10001", "accepted are a number"),
        ("workers: many", "accepted are a number"),
        ("workers 2", "has the line 'workers 2'"),
        ("wrokers: 2", "did you mean workers"),
        ("workers: 2\ngpus: -1", "gpus is '-1'; a number from 0"),
        ("workers: 2\npatience: soon", "patience is 'soon'; a number from 1"),
    ],
)
def test_what_is_none_of_these_is_one_sentence(config, lines, sentence):
    config(lines)
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        wanted()
    assert sentence in str(error.value)
