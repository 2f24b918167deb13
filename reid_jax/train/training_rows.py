"""The training rows of a stage as rounds of pseudo labels see them: features, and how good labels are."""

from reid_jax.data import pipeline
from reid_jax.eval import cluster, embed
from reid_jax.train import embedding, processes


class TrainingRows:
    """Rows of a data set that a method's stage trains on; embedders: {net: Embedder} that are there."""

    def __init__(self, config, method, dataset, devices, embedders):
        self.config, self.method, self.dataset, self.devices = config, method, dataset, devices
        self.embedders = dict(embedders)

    def records(self, labelled=False):
        """Records whose identities are hidden, if there are any, else all; or those with identities."""
        info = self.method.info
        block = info.labelled if labelled or info.unlabelled is None else info.unlabelled
        return self.dataset.train[block.start : block.start + len(block.pid)]

    def extract(self, function, variables, labelled=False, rows=None):
        """f32[N,D] of the training records by function(variables, image u8[B,H,W,3]); see `records`.

        rows: Rows of which it is instead.
        """
        compiled = self.devices.compile_embed(function)
        variables = self.devices.local_state(self.devices.replicate(variables))
        multiple = len(self.devices.local)
        size = -(-self.config.eval.batch_size // multiple) * multiple
        records = self.records(labelled)
        if rows is not None:
            records = self.dataset.train[rows.start : rows.start + len(rows.pid)]
        with pipeline.eval_batches(records, self.config.data, size, trains=True) as batches:
            return embed.embed(lambda batch: compiled(variables, batch["image"]), batches)

    def features(self, state, part):
        """What `part.begin` gets, see methods.Part.features and of_source."""
        if part.features is None:
            return None
        seen = self.of_nets(state, part.features)
        return (seen, self.of_nets(state, part.features, labelled=True)) if part.of_source else seen

    def of_nets(self, state, nets, labelled=False):
        """{net: features f32[N,D]} of `records(labelled)`; nets (): those of the first alone."""
        local, records = self.devices.local_state(state), {"train": self.records(labelled)}
        vectors = {}
        for net in nets or self.method.nets[:1]:
            embedder = self.embedders.setdefault(net, embedding.Embedder(self.method, net, self.devices))
            options = dict(progress=processes.first(), shared=True, trains=True)
            features = embedding.feature_set(
                self.config, embedder, local, records, self.dataset.root, **options
            )
            vectors[net] = features.feature
        return vectors if nets else vectors[self.method.nets[0]]

    def qualities(self, part, memory):
        """How well labels and neighbours in a state's memory fit the identities, as far as these are known.

        Dicts of figures, which training never sees: {"ari", ...} of labels, {"precision"} of neighbours
        i32[N,k] that show the same person.
        """
        hidden, truth = self.method.info.unlabelled, self.dataset.truth
        if "labels" in memory and hidden is not None:
            labels = memory["labels"] if part.singles else cluster.without_singles(memory["labels"])
            camid = hidden.camid if part.labels_by_camera else None
            yield cluster.quality(labels, hidden.pid if truth is None else truth.pid, camid)
        if "neighbours" in memory and truth is not None and (memory["neighbours"] >= 0).any():
            yield {"precision": cluster.precision(memory["neighbours"], truth.pid)}
