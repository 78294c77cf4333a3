"""The suite of containers on a real Podman, through its compatible socket."""

import container_suite

globals().update(container_suite.of("podman"))
