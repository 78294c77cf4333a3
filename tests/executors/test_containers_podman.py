"""Steps in containers of a real Podman, through its compatible socket."""

from __future__ import annotations

import container_suite as suite
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.container, pytest.mark.linux, pytest.mark.usefixtures("podman")]


class TestConformance(suite.Conformance):
    kind = "podman"


class TestHostile(suite.Hostile):
    kind = "podman"


class TestConfinement(suite.Confinement):
    kind = "podman"
    lies = ("above it", "as a link", "with other bytes")


class TestReuse(suite.Reuse):
    kind = "podman"


class TestTroubles(suite.Troubles):
    kind = "podman"


class TestOrphans(suite.Orphans):
    kind = "podman"


class TestRestarts(suite.Restarts):
    kind = "podman"
