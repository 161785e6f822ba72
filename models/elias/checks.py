"""What an ELIAS run refuses before anything is loaded."""

from __future__ import annotations

from losses.shortlist import shortlist_bce, shortlist_decoupled_softmax
from models.contract import check_encoders, check_label_vectors
from models.elias.options import EliasConfig, Limits, clusters_of
from utils.config.config import Config, ConfigError
from utils.data.sizes import DataSizes

LOSSES = {"bce": shortlist_bce, "decoupled-softmax": shortlist_decoupled_softmax}
STARTS_FROM_TEXTS = "method.init: labels starts from the labels' texts"


def check_options(config: Config, sizes: DataSizes) -> None:
    """ConfigError for options that do not go with each other, or with the sizes of the data."""
    check_loss(config)
    check_named_start(config)
    if config.method.init == "labels":
        sizes.check_label_texts(STARTS_FROM_TEXTS)
    check_averaging(config, sizes)
    check_clusters(config.method, sizes.num_labels)


def check_loss(config: Config) -> None:
    """ConfigError for a loss that is not defined on shortlists."""
    loss = config.loss
    if loss.name not in LOSSES or loss.sample or loss.weighted:
        raise ConfigError(
            f"loss.name must be one of {', '.join(LOSSES)} for {config.method.name}, without "
            f"loss.sample and loss.weighted; got {loss.name}"
        )


def check_named_start(config: Config) -> None:
    """ConfigError for options that need a run to start from, where none is named."""
    options = config.method
    if config.run.start_from:
        return
    if options.graph == "approx":
        raise ConfigError(
            "method.graph is 'approx', made from the run that this one starts from, but "
            "run.start_from names none; name a finished elias run, or a graph file that "
            "`python elias_utils.py gen_approx_A` wrote, or use method.graph: cluster"
        )
    if options.init == "vectors":
        raise ConfigError(
            "method.init is 'vectors', the label vectors of the run that this one starts "
            "from, but run.start_from names none; name a finished run with an encoder, such "
            "as dexa or xc"
        )
    if options.fresh_encoder:
        raise ConfigError(
            "method.fresh_encoder clusters the labels by the run that this one starts from, "
            "but run.start_from names none"
        )


def check_averaging(config: Config, sizes: DataSizes) -> None:
    """ConfigError for stochastic weight averaging that would average nothing."""
    options = config.method
    train = config.train
    last = train.stop_epoch if isinstance(train.stop_epoch, int) else train.epochs
    epochs = min(last, train.epochs) - options.swa_start
    steps = epochs * -(-sizes.training // train.batch_size)
    if options.swa and train.epochs and steps <= options.swa_step:
        raise ConfigError(
            f"method.swa averages every {options.swa_step} steps (method.swa_step) from epoch "
            f"{options.swa_start} on (method.swa_start), but only {max(steps, 0)} steps come after "
            "it: nothing would be averaged"
        )


def check_clusters(options: EliasConfig, num_labels: int) -> None:
    """ConfigError for more clusters than labels, or too many labels in one."""
    clusters = clusters_of(options, num_labels)
    limits = Limits.of(options, clusters, num_labels)
    if options.graph != "cluster":
        return
    if clusters > num_labels:
        raise ConfigError(
            f"method.max_leaf is {options.max_leaf}, which makes {clusters} clusters (a power of "
            f"two) of {num_labels} labels; it needs to be larger"
        )
    largest = -(-num_labels // clusters)
    if largest > limits.kappa:
        raise ConfigError(
            f"method.kappa is {limits.kappa}, but {num_labels} labels in {clusters} "
            f"clusters (method.max_leaf) are {largest} in one"
        )


# -------------------------------- the run that it starts from


def check_same_clusters(
    config: Config,
    before: Config,
    num_labels: int,
) -> None:
    """ConfigError where clusters are kept from an ELIAS run that has another number of them."""
    options = config.method
    if not isinstance(before.method, EliasConfig) or options.graph == "cluster":
        return
    clusters = clusters_of(options, num_labels)
    there = clusters_of(before.method, num_labels)
    if there != clusters:
        raise ConfigError(
            f"run.start_from: it has {there} clusters, this run {clusters} "
            "(method.max_leaf, method.graph)"
        )


def check_what_is_taken(config: Config, before: Config) -> None:
    """ConfigError where the run that this one starts from lacks what the options take from it."""
    options = config.method
    check_encoders(config, before)
    takes_more = options.graph != "cluster" or options.init not in ("random", "labels")
    if options.fresh_encoder and takes_more:
        raise ConfigError(
            "method.fresh_encoder takes nothing but clusters from the run that this one "
            "starts from: expected method.graph cluster and method.init random or labels, "
            f"got {options.graph} and {options.init}"
        )
    if options.init == "vectors":
        check_label_vectors(config, before)
    if not isinstance(before.method, EliasConfig):
        if options.graph == "approx" or options.init == "keep":
            raise ConfigError(
                "method.graph 'approx' and method.init 'keep' need an elias run to start from, "
                f"got a {before.method.name} run"
            )
    elif options.init == "keep" and before.method.wl_dim != options.wl_dim:
        raise ConfigError(
            "method.init is 'keep', but the run started from has method.wl_dim "
            f"{before.method.wl_dim}, this one {options.wl_dim}"
        )
