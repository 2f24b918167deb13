"""Every config field with its default, and the helpers that read configs.

`defaults()` is the one place where fields and default values live. A file in `configs/` starts
from it and changes what its paper needs. Plain dictionaries here, so that models, losses and steps
can be used without ml_collections.
"""

import hashlib
import json
import types

from reid_jax.errors import ConfigError


def defaults():
    """All fields with their defaults, as a nested dict (see README, "Config fields")."""
    from reid_jax import models  # which reads choice from here

    return dict(
        method="baseline",  # a module of reid_jax.methods
        seed=0,
        data=dict(
            # A key of data.loaders.LAYOUTS (market1501, mars, folder, ...) or synthetic; several joined by
            # "+" (market1501+msmt17) train together, identities and cameras of each set being kept apart.
            name="market1501",
            root="",  # folder that holds the data set (its own, or the parent); of several: "ROOT1,ROOT2"
            test="",  # several sets: the one whose query and gallery are used; "" = the first
            source="folder",  # folder (original layout) | tfds (written by python -m reid_jax.data build)
            variant="",  # form of the set, e.g. 500k (market1501); "" = its usual one
            split=0,  # number of the split, for sets that have several
            split_seed=0,  # of splits that are drawn
            # Name "folder", one's own images (data/loaders/folder.py):
            csv="",  # file with columns path, pid, camid[, split][, tracklet]; "" = ROOT/labels.csv
            pattern="",  # of names if there is no CSV: a regex with groups pid and camera; "" = Market-1501's
            train_share=0.5,  # where there is no split: share of the identities that is drawn for training
            frames=0,  # T: frames of a clip, for sets of tracklets; 0 = images
            clip="strided",  # strided | rrs: how the frames of a training clip are drawn
            stride=8,  # strided clips: every stride-th frame
            # all | begin | rrs | interleaved | consecutive: the frames that a tracklet is tested by
            test_clip="all",
            chunk=32,  # test_clip "all": frames in memory together
            split_tracklets=0,  # > 0: cut training tracklets into pieces of so many frames
            height=256,
            width=128,
            ids=16,  # P: identities in a global batch
            instances=4,  # K: images of each
            distinct_ids=True,  # False: an identity may appear twice in a batch
            flip=0.5,  # probability
            pad_crop=0,  # pixels padded on each side before a random crop; 0 = off
            erase=0.5,  # probability of random erasing
            erase_area=(0.02, 0.4),  # share of the image
            erase_aspect=0.3,  # h / w uniform in (a, 1 / a)
            erase_fill=(0.485, 0.456, 0.406),  # in the NORMALISED image, as MMT does
            # Degradation of training images before they are resized, in the manner of DI-REID: res
            # (down-sampled) | ill (dark) | jpeg | blur | noise. Each range is drawn from uniformly.
            degrade=dict(
                kind="res",
                share=0.0,  # probability that a training image is degraded, as an augmentation
                ratio=(2.0, 4.0),
                gamma=(2.0, 3.5),
                gain=(0.75, 1.0),
                quality=(10, 20),
                radius=(3, 6),
                deviation=(10, 10),
            ),
            # Real partners in triples: un (another camera) | semi (good with poor images, by camera)
            pairs="un",
            poor_cameras=(0,),  # semi: cameras of poor images, counted from 0
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            workers=0,  # reader processes; 0 = threads of this process
            threads=4,  # reader threads when workers is 0
            prefetch=4,  # batches made ahead
            device_prefetch=2,  # batches put on the devices ahead of the step that takes them; 0 = off
            decoder="pil",  # pil | cv2 | simplejpeg (faster; extra `decode`)
            cache_mib=0,  # decoded training images kept in memory up to this size; 0 = off
            on_broken="stop",  # stop | skip: an image that cannot be read
            val_ids=0,  # training identities held out as a validation split
            synthetic=dict(  # used when name is "synthetic"
                kind="image",  # image | video (walking tracklets) | lowres | caviar | lowlight
                train_ids=100,
                test_ids=100,
                cameras=6,
                images=2,  # per identity and camera
                tracklets=2,  # video: the same
                frames=(8, 24),  # video: of the shortest and the longest tracklet
                height=128,
                width=64,
                strength=1.0,  # how strongly cameras change the picture, 0 to 1.5
                distractors=40,
                junk=20,
                seed=0,
            ),
        ),
        model=models.fields(),  # reid_jax/models/__init__.py and the modules of its packages
        loss=dict(
            feature="after_bn",  # after_bn | before_bn: what the triplet and the MI see
            triplet="cosine",  # cosine | euclidean | softmax
            margin=0.3,
            label_smooth=0.0,
        ),
        optim=dict(
            lr=3e-4,
            weight_decay=5e-4,  # coupled: added to the gradient before the moments
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            schedule="step",  # step | cosine
            milestones=(60, 120, 180),  # epochs; step schedule
            gamma=0.1,
            warmup_steps=0,
        ),
        train=dict(
            epochs=240,
            steps=0,  # > 0: train this many steps instead of whole epochs
            only="",  # a stage of the method: train this one alone; "" = all, in order
            skip=(),  # stages left out, where the method can do without
            backend="pmap",  # pmap | shard_map | jit (one device)
            accumulate=1,  # baseline, efl: parts of a device's batch that go through a network in turn
            log_every=20,  # steps
            eval_every=20,  # epochs; 0 = only at the end
            checkpoint_every=1,  # epochs
        ),
        eval=dict(
            split="test",  # test | val (held-out training identities, data.val_ids)
            net="auto",  # auto | all | one of the method's networks (EFL with teachers also: mean)
            batch_size=64,
            distance="cosine",  # cosine | euclidean
            # auto (the data set's own) | market (images of the query's identity and camera are left out) |
            # all-pairs (nothing is) | single-shot (one random image of each identity, drawn for each query) |
            # single-gallery (drawn once for all queries of a trial)
            protocol="auto",
            trials=0,  # single-*: draws, seeded by `seed`; 0 = 100 for single-shot, 10 for single-gallery
        ),
        report=dict(
            enabled=True,
            queries=12,  # retrieval strips
            baseline="",  # workdir of a finished run to compare strips with
        ),
        init=dict(
            weights="",  # .pth, .pt, .safetensors or .npz with weights (see python -m reid_jax.convert)
            run="",  # or the workdir of a finished run: all but its classifiers
            stages="",  # methods with several stages: finished ones of other runs, "STAGE=WORKDIR,..."
        ),
        stages=dict(),  # stage -> values of its own for any of the fields above
    )


def efl_defaults():
    """Fields of the `efl` method (config.efl)."""
    return dict(
        mode="full",  # full | mmt | fdm | baseline: the ablations build only what they need
        lambda_kl=0.5,
        lambda_mi=1e-4,
        mi_start=0,  # step from which lambda_mi acts
        alpha=0.999,  # EMA decay of the teachers
        ema_ramp=True,  # decay min(1 - 1 / (step + 1), alpha)
        n_mi=10,  # inner steps of Q
        mi_lr=1e-5,
        mi_weight_decay=5e-4,
        mi_hidden=1024,  # as in CLUB, halved inside
        mi_bound="exact",  # exact | sampled
    )


def dsanet_defaults():
    """Fields of the `dsanet` method (config.dsanet); the paper's Table 2 leaves modules out."""
    return dict(
        disentangle=True,  # channel expansion, camera head, L_dis
        intra_class=True,  # L_ic
        tlm=True,  # target localisation
        loss_lr=True,  # with its left/right head and loss
        fwg=True,  # frame weights
        loss_w=True,  # with their pseudo labels from a frame head
        sao=True,  # switching and aggregation
        lam=0.1,  # weight of L_aug, L_lr and L_w
        lam_cam=0.1,  # the paper: 0.5 on LS-VID
        lam_frame=0.1,  # of the frame head's own loss; 0: the literal equations
        lam_dis=1.0,  # of L_dis; the paper has no factor
        lam_ic=1.0,  # of L_ic; the paper has no factor
        fwg_std=2**0.5,  # of the frame weights' first kernel; 2**0.5: Kaiming's for one output (fan-out)
        cel_norm=False,  # batch norm in the channel expansion
        cel_pool="max",  # max (time and space) | max_mean (space, then mean over time)
        tlm_softmax="region",  # region | width
        neck=True,  # batch norm before every classifier
        detach_cam=False,  # L_aug passes f_cam no gradient
        lr_average=False,  # left and right features averaged over time first
        ic_reduce="mean",  # mean | sum over features (sum: the printed formula, 2048 times larger)
    )


def adl_defaults():
    """Fields of the `adl` method (config.adl): IICS, FRIFM and adversarial disentangling."""
    return dict(
        rounds=40,  # of clustering and training within cameras, then over all
        mode="original",  # fixed numbers of clusters | threshold: cut at a quantile of the distances
        intra=dict(  # within cameras
            clusters=600,  # of each camera; the width of its classifier in either mode
            quantile=0.0025,  # threshold mode
            instances=8,  # images of each camera in a batch
            lr=5e-4,  # of the backbone
            head_lr=5e-3,  # of everything else
            epochs=2,  # of a round
        ),
        inter=dict(  # over all cameras; batches are data.ids x data.instances
            clusters=800, quantile=0.0017, lr=1e-3, head_lr=1e-2, epochs=2
        ),
        momentum=0.9,  # SGD; the decay is optim.weight_decay
        triplet=1.0,  # weight of the triplet loss (inter)
        # keep | mask: classes that a round leaves without images stay in the softmax, or count for nothing;
        # auto: keep in mode original, as IICS, mask in mode threshold
        unused_classes="auto",
        k1=20,  # re-ranking before clustering: length of the reciprocal lists,
        k2=6,  # images a set is averaged over,
        lambda_value=0.3,  # weight of the original distance
        mix=0.02,  # weight of the classifiers' similarity in round 0,
        mix_power=0.6,  # falling as (1 - round / rounds) ** mix_power
        dense_limit=20_000,  # more images are clustered over neighbour lists, see methods/adl/labels.py
        candidates=100,  # there: nearest images by feature that may become neighbours
        frifm_stages=(1, 2, 3, 4),  # of the backbone, with a FRIFM behind them; () = none
        frifm_ratio=16,
        adversarial_stages=("intra", "inter"),  # phases with the game against E, H and D; () = none
        lam=0.5,  # weight of L_ADL
        lam_cam=0.1,  # weight of the camera classifier's loss
        encoder_input="detached",  # detached | live: whether E's losses reach the backbone through its input
        transform="exp",  # exp | linear: L_ADL is exp(omega / temperature) or omega
        temperature=1.0,
        critic_input_norm="layer",  # layer | none
        schedule="simultaneous",  # simultaneous | blocks: critic and all others move in turn
        block=10,  # steps of a turn
    )


def cluster_contrast_defaults():
    """Fields of the `cluster_contrast` method (config.cluster_contrast)."""
    return dict(
        rounds=50,  # of clustering and training
        steps=200,  # of a round; 400 on MSMT17
        k1=30,  # Jaccard distance: length of the neighbour lists,
        k2=6,  # images a set is averaged over
        eps=0.6,  # DBSCAN: radius,
        min_samples=4,  # images within it, itself included, that make a core
        max_clusters=2000,  # places in the memory; a round that finds more keeps the largest clusters
        momentum=0.1,  # m of c <- m c + (1 - m) q
        temperature=0.05,
        hard=False,  # only the query least like its centroid moves it
        pool="gem",  # gem | avg | max
        gem_p=3.0,  # exponent that the pooling starts with; it is trained
    )


def direid_defaults():
    """Fields of the `direid` method (config.direid): the paper's; see `direid_preset` for the journal's."""
    return dict(
        preset="paper",  # paper | journal: what the fields below were set for
        # networks
        share_degradation_trunk=False,  # E_d and E'_d have one trunk
        one_degradation_encoder=False,  # E'_d is E_d itself
        multi_scale=True,  # content encoder on all of the stem's maps, else on the last one
        content_dim=128,
        content_scale_dim=64,  # channels of each scale before they are joined
        aspp_dim=128,
        feature_dim=2048,  # of f_inv
        neck_dim=512,  # of the test features
        dropout=0.5,  # before every classifier
        code_dim=128,  # of degradation codes
        code_width=64,  # channels of the degradation encoder's first layers
        mlp_dim=512,  # hidden layers of the generator's MLPs
        generator_blocks=4,
        discriminator_width=32,
        discriminator_blocks=4,
        discriminator_std=0.02,  # deviation of the discriminators' initial weights; 0: He's
        reality_scales=3,
        degradation_scales=0,  # of D_d; 0: 1 for res, else 3
        # first stage: DDGAN
        gan_form="ls",  # ls | log
        gradient_penalty=0.01,
        rank_margin=1.0,
        degraded_recon=False,  # self phase: x_jj and x_ij are to equal x_j as well
        reality_self="synthetic",  # synthetic (x_ij, x_jj) | swapped (x_ij, x_ji): D_r's fakes, self phase
        rank_generator="inputs",  # inputs | generated: what generated images are ranked against
        w_real=1.0,
        w_deg=1.0,
        w_recon=10.0,
        w_cycle=0.0,  # the journal: 10
        w_inv=5.0,
        w_pre=0.5,  # identity preservation by E_id; the journal: 0
        w_id=0.5,
        self_kl=False,  # w_id times KL of the predictions on x_i and x_j, self phase
        without_self=(),  # terms left out: inv, self_rec, rec, pre, id, real, deg
        without_cross=(),
        sync_prob=-1.0,  # probability of a self phase; -1: the phases take turns
        gan_milestones=(10000, 15000, 17500),  # iterations; the longer schedule: 20000, 30000, 35000
        # second stage: DFEN
        dfen="dual",  # dual (E_c and E_id have a backbone each) | shared (one stem)
        attention_input="score",  # score | feature (of D_d) | code (of E_d) | self (f_sen) | none
        attention_form="sigmoid",  # sigmoid | softmax | guided
        attention_dim=256,
        w_fuse=1.0,
        w_inv_reid=0.5,
        w_sen_reid=0.5,
        replay="off",  # off | bank | shuffle: images with other degradations
        replay_loss="kl_detach",  # kl | kl_detach | js | js_detach
        w_replay=5.0,
    )


_DIREID_JOURNAL = dict(
    preset="journal",
    share_degradation_trunk=True,
    degraded_recon=True,
    reality_self="swapped",
    rank_generator="generated",
    w_cycle=10.0,
    w_pre=0.0,
    dfen="shared",
    attention_input="none",
    replay="bank",
)


def direid_preset(name):
    """Fields of config.direid for the "paper" (CVPR 2020) or the "journal" version (IJCV 2022, its code).

    The journal also erases at random (config.data.erase) and down-samples by 3 to 5 (data.degrade.ratio).
    """
    choice("direid.preset", name, ("paper", "journal"))
    return direid_defaults() | (_DIREID_JOURNAL if name == "journal" else {})


def update(tree, values):
    """Puts the values of a nested dict into another, in place; ConfigError for a field that is not there."""
    for key, value in values.items():
        if key not in tree:
            raise ConfigError(f"{key} is no field; there are {', '.join(tree)}")
        if isinstance(value, dict):
            update(tree[key], value)
        else:
            tree[key] = value


def completed(tree):
    """A config of a run as a nested dict, with the fields at their defaults that are newer than the run."""
    name = tree.get("method", "")
    own = globals().get(f"{name}_defaults")
    return _completed(tree, defaults() | ({name: own()} if own else {}))


def _completed(tree, known):
    both = {k: tree.get(k, v) for k, v in known.items()} | tree
    return {
        k: _completed(v, known[k]) if isinstance(v, dict) and isinstance(known.get(k), dict) else v
        for k, v in both.items()
    }


def namespace(tree):
    """Nested dict -> nested SimpleNamespace, a config for use without ml_collections."""
    if isinstance(tree, dict):
        return types.SimpleNamespace(**{k: namespace(v) for k, v in tree.items()})
    return tree


def flatten(tree, prefix=""):
    """Nested dict -> {dotted field: JSON-like value}; tuples become lists."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, name + "."))
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def misfit(tree, known=None, prefix=""):
    """What is wrong with the types of a config that was read from a file, "" when nothing is.

    known: what to compare with, the defaults. Fields that it does not have are passed over.
    """
    if not isinstance(tree, dict):
        return f"{prefix.rstrip('.') or 'the config'} is {tree!r} instead of a set of fields"
    for name, default in (defaults() if known is None else known).items():
        value = tree.get(name, default)
        if isinstance(default, dict):
            if wrong := misfit(value, default, f"{prefix}{name}."):
                return wrong
        elif not _alike(value, default):
            return f"{prefix}{name} is {value!r}, which cannot stand for {default!r}"
    return ""


def _alike(value, default):
    """Whether a value read from JSON has the type of a default."""
    for kind in (str, int | float, tuple | list):
        if isinstance(default, kind):
            return isinstance(value, kind)
    return True


def choice(field, value, allowed):
    """Returns value; raises ConfigError naming the field when it is not in `allowed`."""
    if value not in allowed:
        raise ConfigError(f"config.{field} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
    return value


def unknown_variant(config, variant, known):
    """The error for `--config=configs/x.py:VARIANT` with a VARIANT that x does not have."""
    return ConfigError(f"configs/{config}.py has no variant {variant!r}; it has {', '.join(sorted(known))}")


def split_row(config, variant, variants, rows):
    """'caviar-no_dil' -> ('caviar', 'no_dil'), 'caviar' -> ('caviar', ''); ConfigError for unknown ones."""
    name, _, row = variant.partition("-")
    if name not in variants or (row and row not in rows):
        raise unknown_variant(config, variant, [*variants, *(f"{v}-{r}" for v in variants for r in rows)])
    return name, row


def split_label(text):
    """'EFL=runs/efl' -> ('EFL', 'runs/efl'); without a label ('', text)."""
    label, equals, rest = text.partition("=")
    return (label, rest) if equals and not set(label) & set("/\\:") else ("", text)


def fingerprint(tree):
    """Short hash of a nested dict."""
    text = json.dumps(flatten(tree), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def image_set(tree, name):
    """Full-size training on a real image set: the defaults are the paper's."""
    tree["data"].update(name=name)


def synthetic(tree):
    """The embedded synthetic set with a net that two CPU cores train in minutes."""
    tree["data"].update(
        name="synthetic",
        height=64,
        width=32,
        ids=8,
        instances=4,
        erase=0.2,
        erase_area=(0.02, 0.3),
        threads=2,
    )
    tree["model"].update(backbone="narrow")
    tree["optim"].update(lr=4e-3, schedule="cosine", warmup_steps=50)
    tree["train"].update(steps=1200, eval_every=10, checkpoint_every=10)
    tree["eval"].update(net="all", batch_size=64)


def synthetic_video(tree):
    """Walking tracklets of the embedded generator with the narrow net; minutes on two CPU cores."""
    synthetic(tree)
    tree["data"].update(ids=6, instances=4, frames=4, stride=2)
    tree["data"]["synthetic"].update(kind="video", train_ids=60, test_ids=60, cameras=4)
    tree["model"].update(narrow_widths=(24, 48, 96, 128))
    tree["train"].update(steps=400)
    tree["eval"].update(net="auto", batch_size=64)


def smoke(tree):
    """A few steps on a handful of synthetic pictures: does everything run?"""
    synthetic(tree)
    tree["data"].update(ids=2, instances=4, height=32, width=16)
    tree["data"]["synthetic"].update(
        train_ids=6, test_ids=6, cameras=3, images=2, height=64, width=32, distractors=2, junk=2
    )
    tree["model"].update(narrow_widths=(4, 8, 8), narrow_stripes=2, narrow_dim=16)
    tree["optim"].update(warmup_steps=2)
    tree["train"].update(steps=12, eval_every=2, checkpoint_every=1, log_every=2)
    tree["eval"].update(batch_size=16)
    tree["report"].update(queries=4)


def smoke_video(tree):
    """`smoke` on tracklets."""
    synthetic_video(tree)
    tree["data"].update(ids=2, instances=2, frames=2, height=32, width=16)
    tree["data"]["synthetic"].update(train_ids=4, test_ids=4, cameras=2, frames=(3, 5), distractors=1, junk=1)
    tree["model"].update(narrow_widths=(4, 8, 8), narrow_stripes=2, narrow_dim=16)
    tree["optim"].update(warmup_steps=2)
    tree["train"].update(steps=6, eval_every=2, checkpoint_every=1, log_every=2)
    tree["eval"].update(batch_size=16)
    tree["report"].update(queries=2)
