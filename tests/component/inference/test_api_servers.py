"""Several API servers of vLLM before one engine: to clients and to the trainer they are one server."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.inference import (
    KEY,
    SEEN_WHOLE,
    InferenceServer,
    complete,
    logprobs_by_transformers,
    publish_adapter,
    random_frame,
    tiny_job,
)
from tests.support.trainer import StandInTrainer
from visionrl.adapters import ADAPTERS_PATH, SERVER_HEADER, Manifest
from visionrl.component import EXIT_HUNG
from visionrl.job import TinyModel
from visionrl.tiny.model import build_tiny
from visionrl_inference.vllm_args import adapters_in_use

pytestmark = [pytest.mark.integration, pytest.mark.vision]


@dataclass(frozen=True)
class Rig:
    server: InferenceServer
    trainer: StandInTrainer
    model_dir: Path

    def publish(self, number: int) -> str:
        """A new version's name."""
        return publish_adapter(self.model_dir, self.adapter(""), number)

    def adapter(self, name: str) -> Path:
        return self.trainer.root / "adapters" / name


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("inference")
    job = tiny_job({"apiServerCount": 2})
    model_dir = build_tiny(TinyModel(), job.spec.rollout.env_config, folder / "cache")
    with StandInTrainer(folder / "trainer", KEY) as trainer:
        server = InferenceServer(job, folder, trainer.url)
        try:
            yield Rig(server, trainer, model_dir)
        finally:
            server.kill()


@pytest.fixture
def clients(rig: Rig) -> Iterator[list[httpx.Client]]:
    """A client of each API server, by one connection that stays open."""
    if not rig.server.runs():
        rig.server.kill()
        rig.server.start()
    with contextlib.ExitStack() as stack:
        found: dict[int, httpx.Client] = {}
        while len(found) < 2:  # a connection goes to the one that has the fewest, as soon as both have started
            client = stack.enter_context(rig.server.client())
            found.setdefault(process_of(client, rig.server), client)
        yield list(found.values())


def process_of(client: httpx.Client, server: InferenceServer) -> int:
    """The API server at the other end of a client's connection."""
    with client.stream("GET", "/health") as answer:
        answer.raise_for_status()
        _, port = answer.extensions["network_stream"].get_extra_info("client_addr")
        [process] = [
            each.pid
            for each in server.api_servers()
            if port in [connection.raddr.port for connection in each.net_connections("tcp") if connection.raddr]
        ]
        answer.read()
    return process


def test_a_name_means_the_same_adapter_to_each(rig: Rig, clients: list[httpx.Client]) -> None:
    """Whatever each was asked for before: vLLM's own numbers would begin with 1 in both."""
    first, second, third = (rig.publish(number) for number in (1, 2, 3))
    for client, order in zip(clients, [(first, second, third), (third, first, second)], strict=True):
        for name in order:
            frame = random_frame(1)
            prompt_ids, token_ids, logprobs = complete(client, name, frame)
            expected = logprobs_by_transformers(rig.model_dir, rig.adapter(name), prompt_ids, token_ids, frame)
            np.testing.assert_allclose(logprobs, expected, atol=SEEN_WHOLE, err_msg=name)


def test_none_depends_on_what_another_has_fetched(rig: Rig, clients: list[httpx.Client]) -> None:
    """The engine reads an adapter again that it has put out, from the folder of the API server that asks for it."""
    name, frame = rig.publish(10), random_frame(1)
    first, second = clients
    complete(first, name, frame)
    [folder] = rig.server.cache.glob(f"adapters/*/{name}")
    complete(second, name, frame)
    shutil.rmtree(folder)  # as the first one does with what it has not used for long
    for number in range(11, 11 + adapters_in_use(rig.server.job)):
        complete(first, rig.publish(number), frame)
    prompt_ids, token_ids, logprobs = complete(second, name, frame)
    expected = logprobs_by_transformers(rig.model_dir, rig.adapter(name), prompt_ids, token_ids, frame)
    np.testing.assert_allclose(logprobs, expected, atol=SEEN_WHOLE)


def test_they_are_one_server_that_knows_the_content_of_each_name(rig: Rig, clients: list[httpx.Client]) -> None:
    name = rig.publish(4)
    complete(clients[0], name, random_frame(2))
    answers = [client.get(f"{ADAPTERS_PATH}/{name}") for client in clients]
    assert [answer.json() for answer in answers] == [{"digest": Manifest.of_folder(rig.adapter(name)).digest}] * 2
    assert len({answer.headers[SERVER_HEADER] for answer in answers}) == 1


def test_their_metrics_are_counted_together(clients: list[httpx.Client]) -> None:
    def served(client: httpx.Client) -> float:
        lines = client.get("/metrics").raise_for_status().text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))

    before = served(clients[0])
    for client in clients:
        complete(client, "base", random_frame(3))
    assert [served(client) for client in clients] == [before + 2, before + 2]


@pytest.mark.parametrize("process", ["ApiServer", "EngineCore"])
def test_a_process_that_dies_ends_the_server_which_is_another_one_after_its_next_start(
    rig: Rig, clients: list[httpx.Client], process: str
) -> None:
    server = clients[0].get("/health").headers[SERVER_HEADER]
    victim = rig.server.engine() if process == "EngineCore" else rig.server.api_servers()[1]
    victim.kill()
    assert rig.server.wait() not in (0, EXIT_HUNG)
    assert process in rig.server.last_words()
    rig.server.kill()
    rig.server.start()
    with rig.server.client() as client:
        assert client.get("/health").headers[SERVER_HEADER] != server


@pytest.mark.usefixtures("clients")
def test_sigterm_ends_them_all(rig: Rig) -> None:
    processes = [*rig.server.api_servers(), rig.server.engine()]
    assert rig.server.stop() == 0
    assert not [process for process in processes if process.is_running()]


def test_an_engine_that_stands_still_under_a_request_ends_the_server_with_that_reason(
    rig: Rig, clients: list[httpx.Client]
) -> None:
    rig.server.engine().suspend()
    with pytest.raises(httpx.HTTPError):
        complete(clients[1], "base", random_frame(4))
    assert rig.server.wait() == EXIT_HUNG
    assert rig.server.last_words().startswith("hangs: ")
