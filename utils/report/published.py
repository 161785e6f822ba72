"""Test metrics of other systems on the data sets that can be made or downloaded here.

Measured with the systems' released packages on the same files, test split, the labels' own items
filtered, propensities a = 0.55, b = 1.5, one CPU thread; what was not measured is left out.
"""

SOURCE = (
    "Other systems: measured with their released packages on the same data set and split "
    "(filtered, one CPU thread): napkinXC 0.7.2, omikuji 0.5.2, PECOS 1.2.8 and the released "
    "code of overlap-XMC."
)
COLUMNS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@5", "R@100")

_VALUES: dict[str, dict[str, tuple[float, ...]]] = {
    "LF-DebianTitles-small": {
        "kNN-10 on TF-IDF": (35.64, 22.50, 17.07, 15.93, 18.44, 44.25),
        "napkinXC PLT": (40.68, 26.70, 19.98, 15.25, 18.03, 61.25),
        "omikuji Parabel (3 trees)": (42.21, 27.67, 21.00, 16.66, 20.49, 59.58),
        "omikuji Bonsai": (42.68, 27.26, 20.88, 17.96, 21.13, 58.54),
        "PECOS XR-Linear": (41.50, 26.93, 20.46, 16.92, 20.24, 56.40),
        "one-vs-rest linear SVM": (41.50, 26.50, 19.70),
    },
    "LF-DebianTitles": {
        "napkinXC PLT": (42.82, 29.09, 22.41, 13.54, 17.62, 62.46),
        "omikuji Parabel (3 trees)": (44.11, 29.99, 23.03, 14.98, 19.80, 61.0),
        "omikuji Bonsai": (44.68, 30.61, 23.48, 15.80, 21.19, 61.7),
        "PECOS XR-Linear": (43.38, 29.69, 22.67, 15.23, 20.02, 57.17),
        "overlap-XMC, 2 copies (unfiltered)": (44.86, 30.26, 23.11),
    },
    "Debtags": {
        "omikuji Parabel (3 trees)": (81.79, 59.94, 46.47, 50.52, 64.09, 96.61),
        "PECOS XR-Linear": (80.65, 59.24, 45.82, 49.57, 63.09, 95.12),
    },
}


def _named(systems: dict[str, tuple[float, ...]]) -> dict[str, dict[str, float]]:
    """Values by column; those at the end that were not measured are absent."""
    return {name: dict(zip(COLUMNS, values, strict=False)) for name, values in systems.items()}


PUBLISHED = {data: _named(systems) for data, systems in _VALUES.items()}
