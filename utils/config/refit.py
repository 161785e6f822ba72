"""`refit: true`: the members of a fusion trained again on all training points.

    stages:
      - {name: dual, method: {name: dexa}, train: {epochs: 8}}
      - {name: trees, method: {name: xr-linear}, run: {start_from: null}}
      - {name: fuser, method: {name: fusion, members: {dual: "stage:dual", trees: "stage:trees"}}}
    refit: true

is the same as these stages behind them:

      - {name: dual-all, ..., data: {val_fraction: 0}, train: {epochs: 8, stop_epoch: "best:dual"}}
      - {name: trees-all, ..., data: {val_fraction: 0}}
      - {name: fusion, run: {start_from: "stage:fuser"}, data: {val_fraction: 0}, method: {...,
         members: {dual: "stage:dual-all", trees: "stage:trees-all"}}}
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from utils.config.methods import method_class
from utils.config.references import check_references, with_references
from utils.errors import ConfigError

if TYPE_CHECKING:
    from utils.config.config import Config

ALL_POINTS = {"val_fraction": 0}  # of section data
Stage = Mapping[str, Any]


def refitted_stages(
    stages: Sequence[Stage], built: Mapping[str, Config], where: str
) -> list[dict[str, Any]]:
    """Return the stages that `refit: true` adds: the members' on all points, and their fusion.

    The fusion takes the fuser of the one that `stages` end in. Stages that members start from are
    trained again too, but those of zero epochs.

    Args:
        built: each stage's config by its name.
        where: the file that says it, for errors.
    Raises:
        ConfigError: `stages` do not end in a fusion, name what is no earlier stage, or the fusion
            has a member that is not trained again.
    """
    if not stages or built[stages[-1]["name"]].method.name != "fusion":
        raise ConfigError(
            f"{where}: `refit: true` is for a config with stages that end in a fusion: its members "
            "are trained again"
        )
    check_references(stages)
    *before, fusion = stages
    starts = _starts(stages, built)
    again = _trained_again(stages, built, starts)
    members = built[fusion["name"]].method.members or {}
    _check_members(members, again, where)

    def renamed(kind: str, name: str) -> str:
        return f"{kind}:{name}-all" if kind == "stage" and name in again else f"{kind}:{name}"

    added: list[dict[str, Any]] = []
    previous = f"stage:{fusion['name']}"
    for stage in before:
        name = stage["name"]
        if name not in again:
            continue
        start = with_references(starts[name], renamed)
        stops = _has_epochs(built[name])
        added.append(_on_all_points(with_references(stage, renamed), start, previous, stops))
        previous = f"stage:{added[-1]['name']}"
    added.append(_refitted_fusion(fusion, with_references(members, renamed)))
    return added


def _check_members(
    members: Mapping[str, str],
    again: Collection[str],
    where: str,
) -> None:
    """ConfigError for a member that stays as it is.

    It left points out for validation, and the fusion on all points would refuse it.
    """
    for member, source in members.items():
        kind, _, name = source.partition(":")
        if kind == "stage" and name in again:
            continue
        why = f"is {source}, no stage; make it a stage of this config"
        if kind == "stage":
            why = f"is stage {name} of zero epochs; leave it out, or train it"
        raise ConfigError(
            f"{where}: `refit: true` is for members that are stages and are trained again on all "
            f"points, but member {member} {why}"
        )


def _starts(stages: Sequence[Stage], built: Mapping[str, Config]) -> dict[str, Any]:
    """What each stage starts from: what it says, or the stage before it."""
    starts: dict[str, Any] = {}
    before = None
    for stage in stages:
        name = stage["name"]
        says = before is None or "start_from" in (stage.get("run") or {})
        starts[name] = built[name].run.start_from if says else f"stage:{before}"
        before = name
    return starts


def _trained_again(
    stages: Sequence[Stage], built: Mapping[str, Config], starts: Mapping[str, Any]
) -> set[str]:
    """Names of the stages that are members of the last one, and of all that these take."""
    by_name = {stage["name"]: stage for stage in stages}
    found: set[str] = set()
    waiting: list[str] = []

    def ask(kind: str, name: str) -> None:
        if kind == "stage":
            waiting.append(name)

    with_references(built[stages[-1]["name"]].method.members or {}, ask)
    while waiting:
        name = waiting.pop()
        if name not in found and not _is_untrained(built[name]):
            found.add(name)
            with_references([by_name[name], starts[name]], ask)
    return found


def _has_epochs(config: Config) -> bool:
    return bool(method_class(config.method.name).has_epochs)


def _is_untrained(config: Config) -> bool:
    """Whether a stage has zero epochs; a method that fits at once does so whatever they are."""
    return _has_epochs(config) and config.train.epochs == 0


def _on_all_points(
    stage: Stage,
    start: Any,
    previous: str,
    stops: bool,
) -> dict[str, Any]:
    """A stage again: on all points, for as many epochs as the first time was best.

    Args:
        start: what it starts from; written where that is not `previous`, the stage before.
        stops: whether it is trained by epochs.
    """
    name = stage["name"]
    again = {**stage, "name": f"{name}-all", "data": {**(stage.get("data") or {}), **ALL_POINTS}}
    run = dict(stage.get("run") or {})
    if start != previous:
        run["start_from"] = start
    if run:
        again["run"] = run
    if stops:
        again["train"] = {**(stage.get("train") or {}), "stop_epoch": f"best:{name}"}
    return again


def _refitted_fusion(fusion: Stage, members: Mapping[str, str]) -> dict[str, Any]:
    """The fusion again, of the members that know all points, with the fuser that was fitted."""
    name = fusion["name"]
    return {
        **fusion,
        "name": "fusion-all" if name == "fusion" else "fusion",
        "run": {**(fusion.get("run") or {}), "start_from": f"stage:{name}"},
        "data": {**(fusion.get("data") or {}), **ALL_POINTS},
        "method": {**(fusion.get("method") or {}), "members": members},
    }
