"""The fields that all methods share, with their defaults.

A method's own fields stand in its module, a backbone's in its own; `reid_jax.methods.defaults(NAME)` is all
of them together, and a file in `configs/` starts from that. Plain dictionaries here, so that models, losses
and steps can be used without ml_collections.
"""

from reid_jax.fields import (  # noqa: F401
    choice,
    completed,
    flatten,
    misfit,
    namespace,
    split_label,
    split_row,
    unknown_variant,
    update,
)


def defaults():
    """All fields with their defaults, as a nested dict (see configs/README.md)."""
    from reid_jax import models  # which reads choice from here

    return dict(
        method="",  # a module of reid_jax.methods
        seed=0,
        data=dict(
            # A key of data.loaders.LAYOUTS (market1501, mars, folder, ...) or synthetic; several joined by
            # "+" (market1501+msmt17, synthetic+synthetic2) train together, identities and cameras of each set
            # being kept apart.
            name="market1501",
            root="",  # folder that holds the data set (its own, or the parent); of several: "ROOT1,ROOT2"
            # Several sets: the one whose query and gallery are used; "" = the first; all = the first, and the
            # others as further test sets
            test="",
            source="folder",  # folder (original layout) | tfds (written by python -m reid_jax.data build)
            variant="",  # form of the set, e.g. 500k (market1501); "" = its usual one
            split=0,  # number of the split, for sets that have several
            split_seed=0,  # of splits that are drawn
            # Name "folder", one's own images (data/loaders/folder.py):
            csv="",  # file with columns path, pid, camid[, split][, tracklet]; "" = ROOT/labels.csv
            pattern="",  # of names if there is no CSV: a regex with groups pid and camera; "" = Market-1501's
            train_share=0.5,  # where there is no split: share of the identities that is drawn for training
            train_on="train",  # train | all: query and gallery train too, and nobody is left to test on
            # Body points of pictures: a file or folder of AlphaPose's or OpenPose's JSON, or "true", those
            # of a synthetic set; "" = none
            points="",
            # Attributes of the training people: market_attribute.mat or duke_attribute.mat, or "true", those
            # of synthetic people; "" = none
            attributes="",
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
            # pk | shuffled (every image once an epoch, ids * instances in a batch) | domains (pk of every
            # domain) | gallery (groups by several cameras), for the methods whose only stream is of labelled
            # images
            batches="pk",
            flip=0.5,  # probability
            pad_crop=0,  # pixels padded on each side before a random crop; 0 = off
            pad_mode="zeros",  # zeros | edge: what is padded
            erase=0.5,  # probability of random erasing
            erase_area=(0.02, 0.4),  # share of the image
            erase_aspect=0.3,  # h / w uniform in (a, 1 / a); or a pair, the lowest and the highest
            erase_aspect_log=False,  # the logarithm of h / w is uniform
            erase_tries=100,  # at most 100; then the image stays whole
            erase_whole=False,  # a rectangle may be as high or wide as the image
            # in the NORMALISED image, as MMT does; or normal | uniform: noise for every pixel, N(0, 1) in the
            # normalised image or any colour
            erase_fill=(0.485, 0.456, 0.406),
            # Brightness, contrast and saturation change by factors uniform in 1 +- this, in random order
            jitter=(0.0, 0.0, 0.0),
            # Before training images are resized: none | resized (a part of area crop_area and h / w in
            # crop_aspect, if 10 draws give one) | larger (resized to crop_scale times the size, then a part)
            crop="none",
            crop_share=1.0,  # probability
            crop_area=(0.64, 1.0),
            crop_aspect=(2.0, 3.0),
            crop_scale=1.125,
            autoaugment=0.0,  # probability of AutoAugment's ImageNet policy
            resize="bicubic",  # bicubic | bilinear: how training images are resized
            test_resize="",  # and test images; "" = as training images
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
            exif=True,  # pictures are turned as their EXIF orientation says; False: as they are stored
            # Grey pictures of 16 or 32 bits or floats: the values that become black and white, as (0, 16383);
            # () = of the smallest depth that holds a picture's values
            grey=(),
            cache_mib=0,  # decoded training images kept in memory up to this size; 0 = off
            on_broken="stop",  # stop | skip: an image that cannot be read
            val_ids=0,  # training identities held out as a validation split
            # Several sets: the one whose training identities are hidden (unsupervised adaptation); it is the
            # one that is tested too unless data.test says otherwise.
            target="",
            domains="set",  # set | camera | modality (visible, infrared): what a domain is
            cross_camera=True,  # streams of groups: the images after a group's first by other cameras
            styles="",  # folder of training images in the style of other cameras, NAME_fake_1to2.jpg, ...
            generated="",  # folder of training images that show nobody, made by a generator (baseline: LSRO)
            generated_images=8,  # of them in a batch, beside the real ones
            epoch_steps=0,  # streams of domains: steps of an epoch; 0 = of the largest domain's
            pair_ids=False,  # streams of domains: the same identities in every domain of a batch
            source_ids=0,  # P and K of a labelled source beside a target; 0 = ids, instances
            source_instances=0,
            meta_ids=0,  # P and K of a stream for meta steps; 0 = ids, instances
            meta_instances=0,
            synthetic=dict(  # used when name is "synthetic"
                kind="image",  # image | video (walking tracklets) | lowres | caviar | lowlight | infrared |
                # occluded (half hidden queries)
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
                # Kind image: 0: every camera has its own environment; from 1 on: all have one, by the number.
                # Joined sets (synthetic+synthetic2+...) then have the styles that follow: they are domains
                style=0,
            ),
        ),
        model=models.fields(),  # reid_jax/models/__init__.py and the modules of its packages
        loss=dict(
            feature="after_bn",  # after_bn | before_bn: what the triplet and the MI see
            # cosine (minus the cosine) | euclidean | unit (2 - 2 cos) | softplus (log(1 + exp), AKA's) |
            # softmax (MMT's; margin 0: soft one)
            triplet="cosine",
            margin=0.3,
            soft_margin=False,  # log(1 + exp(difference)) in place of the hinge, without a margin
            mining="hard",  # hard | weighted (AGW: all pairs, weighted by softmax of their distances)
            # weighted: what is added to the sum of the weights. The published codes' 1e-6 makes those of far
            # negatives vanish; 0: the true softmax
            wrt_guard=1e-6,
            triplet_weight=1.0,
            circle_weight=0.0,  # of the circle loss; 0: none
            circle="pairs",  # pairs (over the whole batch at once) | anchor | cosface (by anchor)
            circle_margin=0.25,
            circle_scale=256.0,
            center=0.0,  # weight of the center loss, whose centers are a network of their own; 0: none
            center_lr=0.5,  # of the centers' SGD, on the gradient without the weight
            verification=0.0,  # weight of the verification loss; 0: none
            pair="square",  # of it: square of the difference | product
            pair_dropout=0.9,
            generated=1.0,  # weight of generated images' cross entropy, all classes being as likely (LSRO)
            label_smooth=0.0,
            smoothing="all",  # all classes get label_smooth / K | others: the K - 1 others, as fast-reid
            smooth_adaptive=0.2,  # others, label_smooth < 0: this times the image's own probability instead
            branches="mean",  # of a network with several: mean | sum | a weight for each
        ),
        optim=dict(
            kind="adam",  # adam | amsgrad | sgd
            lr=3e-4,
            weight_decay=5e-4,  # coupled: added to the gradient before the moments
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            momentum=0.9,  # sgd
            nesterov=False,  # sgd
            # (pattern, factor on lr, weight decay or None), ...: for parameters whose path a pattern matches,
            # the first one that does; all others have lr and weight_decay
            groups=(),
            freeze=(),  # patterns of parameters that do not move,
            freeze_epochs=0,  # for so many epochs and
            freeze_steps=0,  # steps; 0 and 0 = at all
            freeze_norms_eval=False,  # while they are frozen, the network runs as in a test (baseline's step)
            schedule="step",  # step | cosine (by steps) | cosine_epochs
            milestones=(60, 120, 180),  # epochs; step schedule
            gamma=0.1,
            lowest=0.0,  # share of lr that a cosine ends at
            first_epoch=0,  # number of the first epoch for milestones, cosine_epochs and warmup_epochs
            warmup_steps=0,
            warmup_epochs=0,
            warmup_factor=0.0,  # share of lr that a warm-up starts at; by steps, 0: at 1 / warmup_steps
            delay_epochs=0,  # until then and, with delay_warmup, until the warm-up is over, milestones and
            delay_warmup=False,  # cosine_epochs have not begun to count
            shared_ends=False,  # warmup_factor and lowest are shares of optim.lr in every group
        ),
        train=dict(
            epochs=240,
            steps=0,  # > 0: train this many steps instead of whole epochs
            only="",  # a stage of the method: train this one alone; "" = all, in order
            skip=(),  # stages left out, where the method can do without
            accumulate=1,  # parts of a device's batch that go through a network in turn, where a method can
            profile="",  # START:STOP, steps of a stage that are traced into WORKDIR/profile
            log_every=20,  # steps
            # the norm of every logged loss' own gradient too, "gradient/LOSS" (a backward pass each, so slow)
            log_gradients=False,
            eval_every=20,  # epochs; 0 = only at the end
            checkpoint_every=1,  # epochs; 0: at the end, before evaluations and where the run is stopped
        ),
        eval=dict(
            split="test",  # test | val (held-out training identities, data.val_ids)
            net="auto",  # auto | all | one of the method's networks (EFL with teachers also: mean)
            batch_size=64,
            mirror=False,  # features of pictures and clips: the sum with those of the mirrored ones
            distance="cosine",  # cosine | euclidean | ratioN, of features that end with N weights
            # auto (the data set's own) | market (images of the query's identity and camera are left out) |
            # all-pairs (nothing is) | single-shot (one random image of each identity, drawn for each query) |
            # single-gallery (drawn once for all queries of a trial) | sysu-all | sysu-indoor (SYSU-MM01's)
            protocol="auto",
            # Further sets to test on during and after training, which nothing is chosen by:
            # "LABEL=NAME:ROOT:SPLITS,...", e.g. "viper:/data/VIPeR:0-9,cuhk03/labeled:/data/cuhk03". LABEL=
            # (the name), /VARIANT and :SPLITS (0; 3 | 0-9 | 0+2+5) may be left out. Beside synthetic sets
            # another of them, "synthetic6"
            also="",
            # none | camera: the mean of each camera's test pictures is taken off, of queries and gallery
            # apart. It needs many unlabelled test pictures of each: a diagnosis
            center="none",
            swap=0,  # drawn sets: people whose bodies are tested on another camera's background too
            # Same person or not: shares of pairs of two persons that may pass for one. Thresholds for them,
            # and the share of true pairs that each finds, are given after training
            false_match_rates=(0.01, 0.001, 0.0001),
            trials=0,  # single-*: draws, seeded by `seed`; 0 = 100 for single-shot, 10 for the others
        ),
        report=dict(
            enabled=True,
            queries=12,  # retrieval strips
            baseline="",  # workdir of a finished run to compare strips with
        ),
        init=dict(
            # .pth, .pt, .safetensors or .npz with weights (see python -m reid_jax.convert), FILE or FILE:KEY;
            # or mobilenet_v2, ImageNet weights in an installed package (extra `pretrained`)
            weights="",
            run="",  # or the workdir of a finished run: all but its classifiers
            stages="",  # methods with several stages: finished ones of other runs, "STAGE=WORKDIR,..."
        ),
        stages=dict(),  # stage -> values of its own for any of the fields above
    )
