"""From scores to phenotypes: clusters, names, rules, pictures, and a page to keep.

    python tutorials/phenotypes.py            # simulated tissue, a minute
    python tutorials/phenotypes.py FOLDER     # real fields

FOLDER holds ``image_data/<fov>/<channel>.tif`` and ``segmentation/<fov>_whole_cell.tiff``, such as the DCIS
fields of benchmarks/dcis.py.
Each block can be run by itself in an editor that knows the percent format, or as a notebook (jupytext).
"""

# %% [markdown]
# # From scores to phenotypes
# Scores say of each cell and marker how sure the network is that the cell is positive. Here they become cell
# types, in two ways that check each other: by clustering, which finds what is there, and by rules, which say
# what one is looking for.

# %%
import sys
from pathlib import Path

import pandas as pd

import nimbus_sd as nb

DATA = next((Path(a) for a in sys.argv[1:] if Path(a).is_dir()), None)  # or the path of a folder
MPP = 0.488  # µm per pixel of those images
OUT = Path("phenotypes-tutorial")
OUT.mkdir(exist_ok=True)

# %% [markdown]
# ## Scores
# One call scores every cell and marker.

# %%
if DATA is None:
    sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(512, 512), seed=3)
else:
    sdata = nb.io.read_fovs(DATA / "image_data", labels=DATA / "segmentation", mpp=MPP)
nb.tl.predict(sdata, progress=False)
adata = sdata["nimbus"]
print(f"{adata.n_obs} cells x {adata.n_vars} markers")

# %% [markdown]
# Lineage markers tell cell types apart, others (PD-1, Ki-67, …) tell what cells are doing. Cluster by the
# former. Panels name some of them differently.

# %%
PAN_KERATIN = "PanCK" if "PanCK" in adata.var_names else "PanKRT"
LINEAGE = ["CD45", "CD3", "CD4", "CD8", "CD20", "CD68", "CD11c"]
LINEAGE += [PAN_KERATIN, "ECAD", "CK5", "SMA", "CD31", "VIM"]
nb.pl.score_distribution(adata, LINEAGE, save=OUT / "scores.png")

# %% [markdown]
# ## Clusters
# A self-organising map sorts cells onto 225 nodes, and its nodes are grouped into 20 metaclusters: more than
# one expects types, because merging two is easy and splitting one is not.

# %%
nb.tl.flowsom(adata, channels=LINEAGE, n_nodes=225, n_metaclusters=20, seed=0)
nb.pl.marker_heatmap(adata, "metacluster", save=OUT / "metaclusters.png")
nb.pl.som(adata, save=OUT / "som.png")

# %% [markdown]
# Now look at the heatmap and decide which belong together; `nimbus-sd review` shows it beside the images. As
# this script has no eyes, it calls a metacluster after the markers whose mean score is above 0.5. Those that
# get the same name are merged, and `nb.tl.undo_clusters` would take it back.

# %%
means = adata.to_df()[LINEAGE].groupby(adata.obs["metacluster"], observed=True).mean()
signature = {str(c): " ".join(m for m in LINEAGE if row[m] > 0.5) or "none" for c, row in means.iterrows()}
nb.tl.merge_clusters(adata, signature)
plainer = {"CD45 CD3 CD4": "CD4 T", "CD45 CD3 CD8": "CD8 T", "CD45 CD20": "B", "none": "negative"}
there = set(adata.obs["metacluster"].cat.categories)
nb.tl.name_clusters(adata, {old: new for old, new in plainer.items() if old in there})
print(adata.obs["metacluster"].value_counts().to_string())
nb.io.write_cluster_mapping(adata, OUT / "metaclusters.csv", overwrite=True)

# %% [markdown]
# ## Rules
# The same question from the other side: say what each type must have and lack, as a tree. Probabilities are
# multiplied on the way down; a cell that fits nothing well enough is called unassigned, and cells that are
# positive for two markers that should exclude each other are counted.

# %%
rules = {
    "immune": {"pos": ["CD45"], "neg": [PAN_KERATIN]},
    "T": {"parent": "immune", "pos": ["CD3"]},
    "CD4 T": {"parent": "T", "pos": ["CD4"]},
    "CD8 T": {"parent": "T", "pos": ["CD8"]},
    "B": {"parent": "immune", "pos": ["CD20"]},
    "myeloid": {"parent": "immune", "anypos": ["CD68", "CD11c"]},
    "epithelial": {"anypos": [PAN_KERATIN, "ECAD"], "neg": ["CD45"]},
    "endothelial": {"pos": ["CD31"], "neg": ["CD45", PAN_KERATIN]},
    "smooth muscle": {"pos": ["SMA"], "neg": ["CD45", PAN_KERATIN, "CD31"]},
    "fibroblast": {"pos": ["VIM"], "neg": ["CD45", PAN_KERATIN, "CD31", "SMA"]},
}
impossible = [("CD3", "CD20"), ("CD4", "CD8"), ("CD45", PAN_KERATIN), ("CD3", "CD68")]
nb.tl.phenotype(adata, rules, contradictions=impossible)
found = adata.uns["phenotype"]
print(adata.obs["phenotype"].value_counts().to_string())
print(f"unassigned: {100 * found['share_unassigned']:.1f} % of the cells")
print("positive for two markers that should exclude each other:")
print(pd.DataFrame(found["contradictions"]).to_string(index=False))

# %% [markdown]
# Clusters and rules should mostly agree. Where a row is spread over several columns, look at the cells.

# %%
table = pd.crosstab(adata.obs["metacluster"], adata.obs["phenotype"], normalize="index")
print((100 * table).round().astype(int).to_string())

# %% [markdown]
# ## Pictures
# Where the phenotypes lie, how many cells of each field are positive, and the cells of each phenotype that
# fit it least.

# %%
first = sorted(adata.obs["region"].unique())[:6]
nb.pl.spatial_map(sdata, "phenotype", samples=first, save=OUT / "map.png")
nb.pl.positive_fraction(adata, LINEAGE, groupby="region", save=OUT / "fractions.png")
nb.pl.coexpression(adata, LINEAGE, save=OUT / "coexpression.png")
colours = [PAN_KERATIN, "CD45", "SMA"]
nb.pl.cell_gallery(
    sdata,
    colours,
    groupby="phenotype",
    pick="least_certain",
    certainty="phenotype_probability",
    save=OUT / "cells.png",
)
nb.pl.overlay(sdata, colours, labels=first[0], groupby="phenotype", save=OUT / "overlay.png")

# %% [markdown]
# ## How right is it?
# The simulation knows the truth; the real fields come with cell types that their authors clustered from
# intensities.

# %%
if DATA is None:
    known = sdata["truth"].obs["cell_type"].reindex(adata.obs_names)
elif (DATA / "cell_types.csv").is_file():
    types = pd.read_csv(DATA / "cell_types.csv")
    types.index = types["fov"] + "_labels_" + types["label"].astype(str)
    known = types["cell_type"].reindex(adata.obs_names)
else:
    known = None
if known is not None:
    counts = pd.crosstab(adata.obs["phenotype"], known)
    print(counts.T.to_string())

# %% [markdown]
# ## A page to keep
# Everything above, the quality of the normalisation and what to distrust, in one file.

# %%
page = nb.app.report(sdata, OUT / "report.html", title="Phenotypes", overwrite=True)
print(f"{page}, {page.stat().st_size / 1e6:.1f} MB")
