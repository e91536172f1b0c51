"""Studies that tables and figures are made of."""

from __future__ import annotations

import pytest

from analysis.load import StudyData, load_study
from tests import synthetic


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    spec = synthetic.Synthetic(faults=False, answers=False)
    return load_study(*synthetic.build(tmp_path_factory.mktemp("complete"), spec))


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    spec = synthetic.Synthetic(answers=False)
    return load_study(*synthetic.build(tmp_path_factory.mktemp("faulty"), spec))
