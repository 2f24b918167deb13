"""Similarities from which on a hit is to be believed; a mixin of `serve.gallery`."""

import json

import numpy as np

from reid_jax.errors import ConfigError, DataError

MOST_ASKED = 5000  # entries that calibration asks for, drawn


class Thresholds:
    """Mixin of the Gallery."""

    def thresholds(self):
        """{"fpir": [[rate, similarity, hit share], ...]}: the gallery's own, else the model's card's."""
        text = self.file.get_meta("thresholds")
        if text:
            return json.loads(text)
        card = getattr(self.embedder, "card", None) or {}
        return card.get("thresholds") or {}

    def threshold(self, fpir):
        """The similarity below which a first hit is unknown; ConfigError where the rate was not measured."""
        points = {
            float(rate): float(similarity) for rate, similarity, *_ in self.thresholds().get("fpir", ())
        }
        if isinstance(fpir, bool) or not isinstance(fpir, int | float) or fpir not in points:
            known = ", ".join(f"{rate:g}" for rate in sorted(points))
            way = f"measured are {known}" if known else "none was measured: reid_jax gallery calibrate"
            raise ConfigError(f"fpir is {fpir}; {way}")
        return points[float(fpir)]

    def calibrate(self):
        """Measures thresholds on the entries with person and camera, and keeps them; returns them."""
        from reid_jax.eval import calibrate

        rows = self._labelled()
        known = np.flatnonzero((rows.person >= 0) & (rows.camera >= 0))
        asked = known
        if len(known) > MOST_ASKED:
            asked = np.sort(np.random.default_rng(0).choice(known, MOST_ASKED, replace=False))
        sides = [
            column[part] for column in (rows.vector, rows.person, rows.camera) for part in (asked, known)
        ]
        limits = calibrate.thresholds(*sides)
        if not limits["fpir"]:
            raise DataError(
                f"{self.path} has {len(known)} entries with person and camera, too few to measure on; name "
                "more, of people whom two cameras saw"
            )
        with self.file.writing() as connection:
            self.file.set_meta(connection, "thresholds", json.dumps(limits))
            self.file.write_audit(connection, self.actor, "calibrate", {"entries": len(known)})
        return limits

    def _labelled(self):
        """Rows, those with person and camera among them."""
        return self._filled()
