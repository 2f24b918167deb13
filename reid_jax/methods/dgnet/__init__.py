"""DG-Net: joint discriminative and generative learning for ReID (Zheng et al., CVPR 2019).

teacher   a ReID network (teacher.py)
dgnet     structure of one person in the appearance of another: E_s, E_a, G against D (swap.py), pictures
          by study.py; networks in nets.py
"""

from reid_jax.methods.dgnet.study import STUDY  # noqa: F401
from reid_jax.methods.dgnet.swap import Dgnet
from reid_jax.methods.dgnet.teacher import Teacher

TITLE = "DG-Net"
FIELDS = dict(
    # networks
    width=16,  # of E_s's first layer
    halvings=2,  # how often E_s halves a picture, G doubles it
    blocks=4,  # residual blocks of E_s, of G
    mlp_dim=512,  # hidden layers of G's MLPs
    parts=4,  # stripes of E_a's map in a code, and pairs of MLPs
    neck_dim=512,  # of each half of the test feature, of the teacher's too
    dropout_prim=0.5,  # before classifier1
    dropout_fine=0.75,  # before classifier2
    live_code=False,  # gradients pass through codes, as in the paper; the published code detaches them
    unit_code=False,  # codes at unit length
    scale2=True,  # images of at most 128 rows are doubled before E_a and the teacher
    scales=3,  # of D
    discriminator_width=32,
    discriminator_blocks=4,
    discriminator_halvings=2,
    discriminator_std=0.02,  # deviation of its initial weights; 0: He's
    teacher_stride=2,  # of the teacher's last stage
    teacher_dropout=0.5,
    from_teacher=False,  # E_a's trunk starts as the teacher's
    # weights of the losses
    penalty=0.01,  # on the squared gradient of D at real images
    w_adv=1.0,
    w_self=5.0,
    w_same=5.0,
    w_id=1.0,
    w_pid=1.0,
    w_generated=0.5,
    # (first, last) of weights that rise by warm_by in every iteration after number warm_from
    warm_code=(0.0, 1.0),
    warm_structure=(0.0, 1.0),
    warm_cycle=(0.0, 2.0),
    warm_teacher=(0.0, 2.0),
    warm_from=30_000,
    warm_teacher_from=30_000,
    warm_by=0.0005,
    w_prim=1.0,  # within the teacher's term: classifier1 as the teacher
    w_fine=0.2,  # and classifier2; also of classifier2 on real images
    # soft (the teacher's probabilities) | hard (its class) | appearance (that person) | uniform (LSRO) |
    # both (the teacher's probabilities of the two persons)
    teacher_style="soft",
    encoder_again=0.5,  # probability that the structure term trains E_s, else the pictures
    train_bn=True,  # teacher and frozen copy of E_a have batch norms in training mode
    # optimisers; config.optim is E_s's, G's and D's
    milestones=(60_000, 90_000, 105_000),  # iterations
    id_lr=0.002,  # E_a's trunk
    id_factor=10.0,  # of its classifiers
    id_gamma=0.1,
    test_fine=1.0,  # weight of the second half of the test feature; the paper: 0.5
)
METRICS = {
    "dis": "D's loss",
    "adv": "Generated pictures pass for real",
    "self": "Reconstruction",
    "same": "Reconstruction by another picture's appearance",
    "id": "Identity cross entropy",
    "pid": "Identity cross entropy, other pictures",
    "gen_id": "Identity of generated pictures",
    "code": "Appearance codes of generated pictures",
    "structure": "Structure of generated pictures",
    "cycle": "Reconstruction from generated pictures",
    "teacher": "What generated pictures teach",
    "ce": "Identity cross entropy",
    "accuracy": "Identity accuracy",
}
LABELS = "all"
STAGES = {"teacher": Teacher, "dgnet": Dgnet}
