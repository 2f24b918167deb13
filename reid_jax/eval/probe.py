"""How much a feature tells of the camera: a linear probe."""

import numpy as np

from reid_jax.errors import DataError


def camera_probe(features, camids, pids, seed=0):
    """Accuracy in percent with which a ridge classifier tells the camera of unseen identities.

    features [N,D], camids i[N], pids i[N]. Features are standardised; the classifier (sklearn's
    RidgeClassifier) learns on a random half of the identities and is scored on the other half.
    Junk and distractors are no identities: leave them out. Compare with `chance`; lower is more
    robust to cameras. Raises DataError with fewer than two identities or cameras to learn from.
    """
    features, camids = np.asarray(features), np.asarray(camids)
    named = Named(features, camids, pids, seed)
    unseen = named.unseen(pids)
    return 100 * float(np.mean(named(features[unseen]) == camids[unseen]))


class Named:
    """The probe itself: f[N,D] -> the camera that it names for each row, i[N]; see `camera_probe`."""

    def __init__(self, features, camids, pids, seed=0):
        from sklearn.linear_model import RidgeClassifier  # a second that no command needs to start
        from sklearn.preprocessing import StandardScaler

        features, camids, pids = np.asarray(features, np.float32), np.asarray(camids), np.asarray(pids)
        train = _train_rows(camids, pids, seed)
        if len(features) != len(camids):
            raise DataError(f"{len(features)} features but {len(camids)} cameras")
        self.known = np.unique(pids[train])
        self.scaler = StandardScaler().fit(features[train])
        self.probe = RidgeClassifier().fit(self.scaler.transform(features[train]), camids[train])

    def __call__(self, features):
        return self.probe.predict(self.scaler.transform(np.asarray(features, np.float32)))

    def unseen(self, pids):
        """bool[N]: the rows of identities that it did not learn on."""
        return ~np.isin(pids, self.known)


def chance(camids, pids, seed=0):
    """Accuracy in percent of always naming the training half's commonest camera."""
    camids = np.asarray(camids)
    train = _train_rows(camids, pids, seed)
    values, counts = np.unique(camids[train], return_counts=True)
    return 100 * float(np.mean(camids[~train] == values[counts.argmax()]))


def _train_rows(camids, pids, seed):
    """bool[N]: the rows of the half of the identities to learn from."""
    pids = np.asarray(pids)
    if len(pids) != len(camids):
        raise DataError(f"{len(pids)} identities but {len(camids)} cameras")
    ids = np.random.default_rng(seed).permutation(np.unique(pids))
    train = np.isin(pids, ids[: len(ids) // 2])
    if len(ids) < 2 or len(np.unique(camids[train])) < 2:
        raise DataError("the camera probe needs at least two identities, seen by at least two cameras")
    return train
