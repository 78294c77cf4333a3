"""Steps in containers of a real Docker daemon."""

from __future__ import annotations

import container_suite as suite
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.container, pytest.mark.linux, pytest.mark.usefixtures("docker")]


class TestConformance(suite.Conformance):
    kind = "docker"


class TestHostile(suite.Hostile):
    kind = "docker"


class TestConfinement(suite.Confinement):
    kind = "docker"


class TestReuse(suite.Reuse):
    kind = "docker"


class TestTroubles(suite.Troubles):
    kind = "docker"


class TestOrphans(suite.Orphans):
    kind = "docker"


class TestExamples(suite.Examples):
    kind = "docker"


class TestRestarts(suite.Restarts):
    kind = "docker"
    comes_back = False  # it may take a minute, over what it finds of its former self
