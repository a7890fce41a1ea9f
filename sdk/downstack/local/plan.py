"""What a local run consists of: which processes with which settings, and the order of their start and stop."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from downstack.local import bootstrap
from downstack.local.config import PACKAGED_MODEL, SIMULATED_MODEL, LocalConfig
from downstack.local.folder import DataFolder
from downstack.local.kafka import LocalKafka
from downstack.local.parts import ServerPart, ServicePart
from downstack.local.places import kafka_jars, packaged_model
from downstack.local.ports import choose_ports
from downstack.local.postgres import LocalPostgres
from downstack.local.process import Command
from downstack.local.state import RunState
from downstack.local.supervisor import Kept, Step
from downstack.local.weights import CONTEXT_TOKENS

_WEIGHTS = "weights"
_SERVICES = ("scheduler", "retriever", "router")
"""Those that a caller may talk to; of several schedulers the first."""


class LocalPlan:
    """The plan of one run. Chooses the ports when it is made; the caller holds the data folder."""

    def __init__(self, config: LocalConfig, folder: DataFolder) -> None:
        self._config = config
        self._folder = folder
        self._secrets = folder.secrets()
        self._models = {name: self._model_folder(ref) for name, ref in config.served_models.items()}
        self._workers = [
            (f"worker-{number}", model)
            for number, model in enumerate((model for model in self._models for _ in range(config.workers)), start=1)
        ]
        further = (f"scheduler-{number}" for number in range(2, config.schedulers + 1))
        self._schedulers = ["scheduler", *further]
        self._postgres = LocalPostgres(folder.path / "postgres")
        self._end_leftovers()
        self._at = self._addresses()
        self._kafka = LocalKafka(folder.path / "kafka", jars_dir=kafka_jars(), port=_port(self._at["kafka"]))
        self.kept: Sequence[Kept] = [*self._servers(), *self._services()]
        self.steps: Sequence[Step] = self._steps()
        workers = frozenset(name for name, _ in self._workers)
        self.stop_order: Sequence[frozenset[str]] = [
            frozenset({"router"}),
            workers | {"retriever"},
            frozenset(self._schedulers),
            frozenset({"kafka", "postgres"}),
        ]

    def state(self) -> RunState:
        """The run before anything is started."""
        endpoints = {name: self._at[name] for name in (*_SERVICES, "kafka")}
        return RunState(engine=self._config.engine, models=tuple(self._models), endpoints=endpoints)

    def _model_folder(self, ref: str) -> str:
        if ref == PACKAGED_MODEL:
            return str(packaged_model(self._folder).absolute())
        return ref if ref.startswith("builtin:") else str(Path(ref).absolute())

    def _end_leftovers(self) -> None:
        # A supervisor that was killed together with its guard leaves its servers; ours shall have our ports.
        self._postgres.stop()
        LocalKafka(self._folder.path / "kafka", jars_dir=kafka_jars()).stop()

    def _addresses(self) -> dict[str, str]:
        last = self._folder.state()
        known = {name: part.address for name, part in last.parts.items()} if last else {}
        known |= {f"{name} metrics": part.metrics for name, part in last.parts.items()} if last else {}
        listeners = [*_SERVICES, *self._schedulers[1:], *(name for name, _ in self._workers)]
        names = ["kafka", *listeners, *(f"{name} metrics" for name in listeners)]
        fixed = {"router": self._config.port} if self._config.port else {}
        return choose_ports(names, last=known, fixed=fixed)

    def _servers(self) -> list[Kept]:
        timeout_s, tick_s = self._config.start_timeout_s, self._config.tick_s
        postgres = ServerPart("postgres", self._postgres, timeout_s=timeout_s, tick_s=tick_s)
        kafka = ServerPart("kafka", self._kafka, timeout_s=timeout_s, tick_s=tick_s, address=self._at["kafka"])
        return [Kept(part=postgres), Kept(part=kafka)]

    def _services(self) -> list[Kept]:
        unpacked = frozenset({_WEIGHTS}) if self._unpacks() else frozenset[str]()
        migrated = frozenset({"migrations"})
        kept = [
            *(
                self._service(name, self._scheduler_env, after=migrated, module="scheduler")
                for name in self._schedulers
            ),
            self._service("retriever", self._retriever_env, after=migrated),
            self._service("router", self._router_env, after=migrated | unpacked),
        ]
        for name, model in self._workers:
            kept.append(self._service(name, self._worker_env(name, model), after=unpacked, module="worker"))
        return kept

    def _unpacks(self) -> bool:
        return PACKAGED_MODEL in self._config.served_models.values()

    def _service(
        self, name: str, settings: Callable[[], Mapping[str, str]], *, after: frozenset[str], module: str = ""
    ) -> Kept:
        module = module or name
        log = self._folder.logs / f"{name}.log"

        def command() -> Command:
            prefix = f"DOWNSTACK_{module.upper()}_"
            values = {**self._base_env(name), **settings()}
            env = {f"{prefix}{key.upper()}": value for key, value in values.items()}
            return Command(argv=[sys.executable, "-m", f"services.{module}"], env=env, log=log)

        part = ServicePart(
            name,
            address=self._at[name],
            metrics=self._at[f"{name} metrics"],
            log=log,
            command=command,
            timeout_s=self._config.start_timeout_s,
            tick_s=self._config.tick_s,
        )
        return Kept(part=part, after=after)

    def _base_env(self, name: str) -> dict[str, str]:
        outbox = self._folder.path / "outbox"
        outbox.mkdir(exist_ok=True)
        return {
            "listen": self._at[name],
            "metrics_listen": self._at[f"{name} metrics"],
            "drain_s": str(self._config.drain_s),
            "service_secret": self._secrets.service_secret,
            "kafka_bootstrap": self._at["kafka"],
            "outbox_path": str(outbox / f"{name}.sqlite"),
        }

    def _account_env(self) -> dict[str, str]:
        return {
            "postgres_dsn": self._postgres.app_dsn,
            "key_pepper": self._secrets.key_pepper,
            "bootstrap_admin_key": self._secrets.bootstrap_admin_key,
        }

    def _scheduler_env(self) -> dict[str, str]:
        return self._account_env()

    def _scheduler_addresses(self) -> str:
        return ",".join(self._at[name] for name in self._schedulers)

    def _retriever_env(self) -> dict[str, str]:
        return self._account_env()

    def _router_env(self) -> dict[str, str]:
        return {
            **self._account_env(),
            "scheduler": self._scheduler_addresses(),
            "retriever": self._at["retriever"],
            "models": json.dumps(self._models),
        }

    def _worker_env(self, name: str, model: str) -> Callable[[], dict[str, str]]:
        env = {
            "worker_id": name,
            "scheduler": self._scheduler_addresses(),
            "engine": str(self._config.engine),
            "model": model,
            "model_path": self._models[model],
        }
        if self._config.served_models[model] in {PACKAGED_MODEL, SIMULATED_MODEL}:
            env["context_tokens"] = str(CONTEXT_TOKENS)
        return lambda: env

    def _steps(self) -> list[Step]:
        router, folder, config = self._at["router"], self._folder, self._config
        wanted = dict.fromkeys(self._models, config.workers)
        workers = frozenset(name for name, _ in self._workers)

        async def migrations() -> None:
            await bootstrap.create_schemas(self._postgres.owner_dsn)

        async def topics() -> None:
            await bootstrap.create_topics(self._at["kafka"])

        async def account() -> None:
            await bootstrap.create_account(folder, router=router, timeout_s=config.start_timeout_s)

        async def fleet() -> None:
            await bootstrap.fleet_is_complete(folder, router=router, wanted=wanted, config=config)

        async def weights() -> None:
            await bootstrap.create_weights(packaged_model(folder))

        steps = [
            Step(name="migrations", after=frozenset({"postgres"}), run=migrations),
            Step(name="topics", after=frozenset({"kafka"}), run=topics),
            Step(name="account", after=frozenset({"router"}), run=account),
            Step(name="fleet", after=workers | {"account", *self._schedulers}, run=fleet),
        ]
        return [Step(name=_WEIGHTS, after=frozenset(), run=weights), *steps] if self._unpacks() else steps


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
