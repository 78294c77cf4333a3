"""The suite of containers on a real Docker daemon."""

import container_suite

globals().update(container_suite.of("docker"))
