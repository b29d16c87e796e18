"""A step of the KubeRay stand-in's script that does the real work: the head's container of a RayJob as a process of this machine.

The process gets the entrypoint and the variables of the manifest, and what its Secrets would give; it works on a Ray cluster that is
there already. While it lives the job is RUNNING, and its exit code becomes the job's end, as KubeRay has it from Ray's Jobs API.

What it cannot prove: that the image, the pod's restrictions and its network let the same process work.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

from tests.standins.kuberay import RUNNING, SUCCEEDED, status


class Pod:
    """Play it behind `admit()`.

    Args:
        environment: What only this machine knows: the address of the Ray cluster, the values of the Secrets, a home.
        log: File for what the process says.
    """

    def __init__(self, environment, log):
        self.environment, self.log, self.process = environment, log, None

    def __call__(self, cluster, body):
        self.process = self.process or self._start(body)
        code = self.process.poll()
        if code is None:
            RUNNING(cluster, body)
            cluster.script.insert(0, self)
        elif code == 0:
            SUCCEEDED(cluster, body)
        else:
            status("Failed", "FAILED", reason="AppFailed", message=f"exit code {code}")(cluster, body)

    def _start(self, body):
        (container,) = body["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
        told = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
        program, *arguments = shlex.split(body["spec"]["entrypoint"])
        assert program == "python"
        with self.log.open("ab") as log:
            environment = {**os.environ, **told, **self.environment}
            return subprocess.Popen([sys.executable, *arguments], env=environment, stdout=log, stderr=log)

    def pause(self):
        """Nothing goes on in it until `go_on`, however slow the rest of the machine is."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
