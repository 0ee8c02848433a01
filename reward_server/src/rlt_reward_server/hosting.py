"""Loads, proves and switches versions while requests go on. Imports no torch before the first model is loaded."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rlt_client.errors import APIError, Conflict, InvalidRequest, ItemError, NotFound, RLTError
from rlt_client.formats import Format, FormatError
from rlt_client.prompts import TextCodec, content
from rlt_client.schemas.models import LoadModel, ModelKind, ModelState, Role
from rlt_reward_server.catalog import Catalogs
from rlt_reward_server.models import Found, LoadedModel, Named, find_models
from rlt_reward_server.passes import Pass
from rlt_reward_server.probe import probe_item
from rlt_reward_server.reading import Reading
from rlt_reward_server.registry import Registry, Version
from rlt_reward_server.settings import Settings
from rlt_reward_server.spans import student_sequence
from rlt_service.paths import AllowedRoots
from rlt_service.pointers import at
from rlt_service.revision import ModelNotFound, hub_folder

if TYPE_CHECKING:
    from rlt_reward_server.loading import Loader

__all__ = ["ModelHost"]

log = logging.getLogger(__name__)


class ModelHost:
    """The models of one server. Made by `start`; loads are done one after the other."""

    def __init__(self, settings: Settings, catalogs: Catalogs, loader: Loader, registry: Registry) -> None:
        self._settings = settings
        self._catalogs = catalogs
        self._loader = loader
        self._roots = AllowedRoots(settings.allowed_roots)
        self._one_at_a_time = asyncio.Lock()
        self.registry = registry

    @classmethod
    async def start(cls, settings: Settings, formats: Mapping[str, Format], own: set[str]) -> Self:
        """Load what the settings name.

        Raises:
            ModelNotFound, UnusableModel, UnusableTokenizer, UnsupportedModel, InsufficientMemory: a model cannot be
                served.
            FormatError: the models cannot take a required format.
        """
        return await asyncio.to_thread(cls._start, settings, formats, own)

    @classmethod
    def _start(cls, settings: Settings, formats: Mapping[str, Format], own: set[str]) -> Self:
        """Finds before it imports: a folder that is not there is told at once."""
        models = find_models(settings)
        tokenizer = settings.teacher_tokenizer
        sent_by = TextCodec.of_folder(tokenizer) if tokenizer else None

        from rlt_reward_server.loading import Loader

        catalogs = Catalogs(formats, default=settings.format, required=own)
        loader = Loader(settings)
        try:
            return cls._serve_all(settings, catalogs, loader, sent_by, models)
        except BaseException:
            loader.close()
            raise

    @classmethod
    def _serve_all(
        cls, settings: Settings, catalogs: Catalogs, loader: Loader, sent_by: TextCodec | None, models: list[Named]
    ) -> Self:
        first, *others = models
        student = loader.load(first.found, None, [], pickles=True)
        catalogs.of(student.codec, None)
        host = cls(settings, catalogs, loader, Registry(student, catalogs, sent_by=sent_by, freed=_collect))
        host._warm(student)
        for named in others:
            host._serve(named, host._load(named.role, named.found, None, pickles=True))
        return host

    @property
    def lost(self) -> str | None:
        """Why nothing can be scored any more: a process that holds a part of every model has ended."""
        return self._loader.team.lost if self._loader.team else None

    def close(self) -> None:
        """End the processes that hold parts of the models."""
        self._loader.close()

    async def load(self, request: LoadModel) -> tuple[Version, bool, float]:
        """Load a version and switch to it. Requests that began keep theirs; a failure changes nothing.

        Returns the version, whether it was loaded, and the seconds that it took.

        Raises:
            InvalidRequest: unusable_model, path_not_allowed, hub_not_allowed.
            NotFound: unknown_base.
            Conflict: revision_mismatch, insufficient_memory.
        """
        async with self._one_at_a_time:
            began = time.perf_counter()
            version, loaded = await asyncio.to_thread(self._load_and_serve, request)
            return version, loaded, time.perf_counter() - began

    async def unload(self, role: Role, name: str) -> None:
        """Raises `NotFound` (unknown_student, unknown_teacher), `Conflict` (model_is_default, model_is_base)."""
        async with self._one_at_a_time:
            self.registry.remove(role, name)
        log.info("model unloaded", extra={"role": role.value, "model": name})

    def _load_and_serve(self, request: LoadModel) -> tuple[Version, bool]:
        try:
            found = Found(request.name, self._folder(request), request.kind)
            base = self._base(request) if request.base else None
            revision = self._loader.revision(found, base)
            _expect(request.expected_revision, revision)
            serving = self.registry.find(request.role, request.name)
            if serving is not None and serving.model.ref.revision == revision:
                model, loaded = serving.model, False
            else:
                model, loaded = self._load(request.role, found, base), True
        except RLTError as error:
            raise _refusal(error) from error
        return self._serve(Named(request.role, found, request.default), model), loaded

    def _folder(self, request: LoadModel) -> Path:
        """Raises `InvalidRequest` (path_not_allowed), for what lies in the folder too, and `ModelNotFound`."""
        try:
            folder = self._roots.resolve(request.source)
        except InvalidRequest:
            if not self._settings.allow_hub or request.source.startswith("/"):
                raise
            return hub_folder(request.source)
        if self._settings.allow_hub and not folder.is_dir():
            return hub_folder(request.source)
        return self._roots.contain(folder)

    def _base(self, request: LoadModel) -> LoadedModel:
        """Of the same role, else of the other."""
        assert request.base is not None
        roles = (request.role, *(role for role in Role if role is not request.role))
        found = [version for role in roles if (version := self.registry.find(role, request.base))]
        if not found:
            raise at("/base", NotFound("no such model is served", type="unknown_base"))
        if found[0].model.kind is not ModelKind.full:
            raise at("/base", InvalidRequest("it is an adapter itself", type="unusable_base"))
        return found[0].model

    def _load(self, role: Role, found: Found, base: LoadedModel | None, *, pickles: bool = False) -> LoadedModel:
        """Loaded, proved with each partner, and warm."""
        _is_model(found)
        versions = self.registry.versions()
        model = self._loader.load(found, base, [version.model for version in versions], pickles=pickles)
        codecs = {id(v.model.codec): v.model.codec for v in versions if v.role is not role and _serving(v)}
        for partner in codecs.values():
            self._catalogs.of(*((model.codec, partner) if role is Role.student else (partner, model.codec)))
        if role is Role.student and not codecs:
            self._catalogs.of(model.codec, None)
        if not any(version.model.scorers is model.scorers for version in versions):  # else a replica may be inside it
            self._warm(model)
        return model

    def _serve(self, named: Named, model: LoadedModel) -> Version:
        name = model.ref.name
        self.registry.put(named.role, model, default=named.default)
        self._catalogs.forget(to_keep.model.codec for to_keep in self.registry.versions())
        version = self.registry.find(named.role, name)
        assert version is not None  # loads and unloads are done one after the other
        facts = {"role": named.role.value, "model": name, "revision": model.ref.revision}
        log.info("model served", extra={**facts, "default": self.registry.is_default(version)})
        return version

    def _warm(self, model: LoadedModel) -> None:
        """Score the default format's probe on every device.

        Raises:
            Unscorable: that gives no finite log-probs.
        """
        asked = self._probe(model.codec)
        for scorer in model.scorers:
            [outcome] = scorer.log_probs([asked])
            if isinstance(outcome, ItemError):
                raise Unscorable(f"the probe could not be scored on {scorer.device}: {outcome}")

    def _probe(self, codec: TextCodec) -> Pass:
        format = self._catalogs.default_format
        item = probe_item(format)
        try:
            sequence = student_sequence(codec, format, item, Reading(item.explanation or "", True))
            return Pass(sequence.ids, [*sequence.think, *sequence.answer], 1.0)
        except (ItemError, FormatError):  # a teacher need not be able to read as a student does
            ids = codec.encode([content(item.question + item.answer)]).ids
            return Pass(ids, list(range(1, len(ids))), 1.0)


class Unscorable(RLTError):
    """A model that is loaded but cannot score."""


def _is_model(found: Found) -> None:
    wanted = "adapter_config.json" if found.kind is ModelKind.lora else "config.json"
    if not (found.folder / wanted).is_file():
        raise ModelNotFound(f"not a folder of a {found.kind} model, it has no {wanted}: {found.folder}")


def _serving(version: Version) -> bool:
    return version.state is ModelState.serving


def _expect(wanted: str | None, revision: str) -> None:
    if wanted is not None and wanted != revision:
        raise at("/expected_revision", Conflict(f"the source is {revision}, not {wanted}", type="revision_mismatch"))


def _refusal(error: RLTError) -> RLTError:
    """What the caller is told: refusals as they are, all else as a model that cannot be used."""
    if isinstance(error, APIError):
        return error
    return at("/source", InvalidRequest(str(error), type="unusable_model"))


def _collect(_: LoadedModel) -> None:
    """Modules and tokenizers hold each other in circles. Later, when the request that ended has let go of them."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # a loading thread
        gc.collect()
    else:
        loop.call_later(0.1, gc.collect)
