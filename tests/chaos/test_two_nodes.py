"""Two nodes for real: two network namespaces with one cable between them, and torchrun's rendezvous over it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import ROOT
from speech_files import write_corpus
from speech_runs import QUICK, manifests

TRAIN = ROOT / "recipes" / "asr" / "train.py"


class Node(NamedTuple):
    """A network of its own: its name, its end of the cable, and its address."""

    name: str
    interface: str
    address: str


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    if shutil.which("ip") is None or not sys.platform.startswith("linux"):
        pytest.skip("network namespaces need Linux and iproute2")
    if os.geteuid():
        pytest.skip("only root may make network namespaces")
    tag = os.getpid() % 100_000
    made = [Node(f"novograd{tag}n{i}", f"ng{tag}v{i}", f"10.213.77.{i + 1}") for i in range(2)]
    with contextlib.ExitStack() as stack:
        for node in made:
            ip("netns", "add", node.name)
            stack.callback(subprocess.run, ["ip", "netns", "del", node.name], capture_output=True)
        first, second = made
        ip("link", "add", first.interface, "type", "veth", "peer", "name", second.interface)
        for node in made:
            ip("link", "set", node.interface, "netns", node.name)
            for link in ("lo", node.interface):
                ip("-n", node.name, "link", "set", link, "up")
            ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.interface)
        yield made


def overrides(corpus: Path, folder: Path) -> list[str]:
    speech = [*QUICK, *manifests(corpus), f"data.cache_dir={folder / 'cache'}", "data.num_workers=0"]
    return [*speech, "trainer=ddp_cpu", "distributed.process_group_timeout=60", f"hydra.run.dir={folder}"]


def launched(arguments: list[str], program: list[str], prefix: list[str], **environment: str) -> subprocess.Popen:
    command = [*prefix, sys.executable, "-m", "torch.distributed.run", *arguments, str(TRAIN), *program]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)


def finish(processes: list[subprocess.Popen]) -> list[str]:
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def test_two_nodes_train_as_two_processes_of_one(nodes, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", "tiny", 24)
    apart, together = tmp_path / "apart", tmp_path / "together"
    processes = []
    for node in nodes:
        rendezvous = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--local-addr={node.address}"]
        rendezvous += [f"--rdzv-endpoint={nodes[0].address}:29431", "--rdzv-id=novograd"]
        # this machine's name has no address in the namespaces, by which torchrun knows the endpoint's node
        rendezvous.append(f"--rdzv-conf=is_host={str(node is nodes[0]).lower()}")
        program = [*overrides(corpus, apart), "trainer.devices=1", "trainer.num_nodes=2"]
        enter = ["ip", "netns", "exec", node.name]
        processes.append(launched(rendezvous, program, enter, GLOO_SOCKET_IFNAME=node.interface))
    first, second = finish(processes)
    assert "4 per device x 1 devices x 2 nodes" in first + second

    alone = launched(["--standalone", "--nproc-per-node=2"], [*overrides(corpus, together), "trainer.devices=2"], [])
    finish([alone])

    results = [json.loads((folder / "results.json").read_text()) for folder in (apart, together)]
    assert [(r["optimizer_steps"], r["global_batch_size"]) for r in results] == [(6, 8)] * 2
    assert results[0]["dev_cer"] == results[1]["dev_cer"]
    weights = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (apart, together)]
    for name, weight in weights[1].items():
        assert torch.equal(weights[0][name], weight), name
    assert [path.name for path in tmp_path.glob("*/results.json")].count("results.json") == 2
    assert sorted(path.name for path in apart.glob("train*.log")) == ["train.log"]
