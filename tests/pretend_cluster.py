"""A Kubernetes API on this machine with just what a TrainJob needs, whose nodes are torchrun processes.

It plays Kubeflow Trainer's controller: for a TrainJob it starts the job's own command once for each node, with the
variables (PET_...) by which the runtime `torch-distributed` tells torchrun of the other nodes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAMESPACE = "team"
API = "/apis/trainer.kubeflow.org/v1alpha1"
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {
                                "template": {"spec": {"containers": [{"name": "node", "image": "pytorch/pytorch"}]}}
                            },
                        },
                    }
                ]
            }
        },
    },
}


class Cluster:
    """Jobs by name, the processes of each, and the text that they wrote into `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs, self.nodes, self.deleted = folder, {}, {}, []

    def create(self, job: dict) -> dict:
        name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
        job["metadata"] |= {"namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z"}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.jobs[name], self.nodes[name] = job, []
        for node in range(trainer["numNodes"]):
            environment = {
                **os.environ,
                **{variable["name"]: variable.get("value", "") for variable in trainer.get("env", [])},
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PET_NNODES": str(trainer["numNodes"]),
                "PET_NPROC_PER_NODE": "1",
                "PET_NODE_RANK": str(node),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
            }
            with self.log(name, node).open("wb") as log:
                self.nodes[name].append(
                    subprocess.Popen(trainer["command"], env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
        return job

    def log(self, name: str, node: int) -> Path:
        return self.folder / f"{name}-node-0-{node}.log"

    def job(self, name: str) -> dict:
        codes = [node.poll() for node in self.nodes[name]]
        kind = "Failed" if any(codes) else "Complete" if all(code == 0 for code in codes) else None
        if kind == "Failed":
            self.stop(name)
        condition = {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        condition |= {"reason": "Ended", "message": ""}
        return {**self.jobs[name], **({"status": {"conditions": [condition]}} if kind else {})}

    def pods(self, name: str) -> dict:
        items = []
        for node, process in enumerate(self.nodes[name]):
            code = process.poll()
            labels = {
                "jobset.sigs.k8s.io/jobset-name": name,
                "jobset.sigs.k8s.io/replicatedjob-name": "node",
                "batch.kubernetes.io/job-completion-index": str(node),
            }
            metadata = {"name": self.log(name, node).stem, "namespace": NAMESPACE, "labels": labels}
            metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
            phase = "Running" if code is None else "Failed" if code else "Succeeded"
            spec = {"containers": [{"name": "node", "image": "fairvlm"}]}
            items.append({"metadata": metadata, "spec": spec, "status": {"phase": phase}})
        return {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}

    def stop(self, name: str) -> None:
        for node in self.nodes[name]:
            if node.poll() is None:
                node.terminate()
            node.wait(30)


def handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: dict | str | None) -> None:
            found = body if body is not None else {"kind": "Status", "status": "Failure", "code": 404}
            content = (found if isinstance(found, str) else json.dumps(found)).encode()
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            last = path.rsplit("/", 1)[1]
            if path == f"{API}/clustertrainingruntimes/torch-distributed":
                self.answer(RUNTIME)
            elif path == f"{API}/namespaces/{NAMESPACE}/trainjobs/{last}" and last in cluster.jobs:
                self.answer(cluster.job(last))
            elif path == f"/api/v1/namespaces/{NAMESPACE}/pods":
                self.answer(cluster.pods(next(name for name in cluster.jobs if name in query)))
            elif path.startswith(f"/api/v1/namespaces/{NAMESPACE}/pods/") and last == "log":
                self.answer((cluster.folder / f"{path.split('/')[-2]}.log").read_text())
            else:
                self.answer(None)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(cluster.create(body) if self.path == f"{API}/namespaces/{NAMESPACE}/trainjobs" else None)

        def do_DELETE(self) -> None:
            name = self.path.partition("?")[0].rsplit("/", 1)[1]
            cluster.stop(name)
            cluster.deleted.append(name)
            self.answer({"kind": "Status", "status": "Success"})

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def pretend_cluster(folder: Path):
    """The cluster, and the kubeconfig of a user who may use it, written into `folder`."""
    cluster = Cluster(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(cluster))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = {"server": f"http://127.0.0.1:{server.server_port}"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": here}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}],
        "current-context": "here",
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    try:
        yield cluster
    finally:
        for name in cluster.jobs:
            cluster.stop(name)
        server.shutdown()
        server.server_close()
