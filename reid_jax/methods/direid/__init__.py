"""DI-REID: degradation-invariant ReID (Huang et al., CVPR 2020; the objectives of its IJCV 2022 version too).

Three stages, each readable in its file:

    teacher   E_id, a ReID network (teacher.py)
    gan       DDGAN: E_con, E_deg, G against D_real and D_deg (gan.py; losses: objectives.py, judges.py;
              groups: parameters.py), measured by study.py
    dfen      DFEN: f_inv of E_con with f_sen of E_id, weighted by the degradation (dfen.py, attention.py)

stage.py has what they share, nets.py and layers.py the networks. Without degradation learning
(config.train.skip=("gan",), the paper's "w/o DIL") E_con starts from the teacher's stem and the attention,
which needs stage gan, must be off.
"""

from reid_jax.methods.direid.dfen import Dfen
from reid_jax.methods.direid.gan import Ddgan
from reid_jax.methods.direid.study import STUDY  # noqa: F401
from reid_jax.methods.direid.teacher import Teacher

TITLE = "DI-REID"
FIELDS = dict(
    # networks
    share_degradation_trunk=False,  # E_d and E'_d have one trunk
    one_degradation_encoder=False,  # E'_d is E_d itself
    multi_scale=True,  # content encoder on all of the stem's maps, else on the last one
    stem_gradient=False,  # stage gan: gradients reach E_con's stem; the authors' later code: they do not
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
    # feature: A_deg weighs f_sen's channels | neck: the neck's outputs, which the test compares and C then
    # fuses. Behind a neck on a weighted f_sen, what is suppressed becomes a constant
    attention_on="feature",
    sen_loss="after",  # L_sen sees f_sen after | before the attention; after: closing it is punished
    attention_norm=False,  # what A_deg reads is standardised by running moments first
    w_fuse=1.0,
    w_inv_reid=0.5,
    w_sen_reid=0.5,
    replay="off",  # off | bank | shuffle: images with other degradations
    replay_loss="kl_detach",  # kl | kl_detach | js | js_detach
    w_replay=5.0,
)
PRESETS = {  # values unlike the paper's
    # the IJCV 2022 version, its code; it also has data.erase 0.5 and data.degrade.ratio (3, 5)
    "journal": dict(
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
}
METRICS = {
    "loss": "Total loss",
    "accuracy": "Identity accuracy",
    "dis": "Loss of the discriminators",
    "dis_real": "D_real's loss",
    "dis_deg": "D_deg's loss",
    "gen_inv": "Content of a picture and its degraded version",
    "gen_self_rec": "Reconstruction",
    "gen_rec": "Reconstruction by another code",
    "gen_pre": "Identity preserved, by E_id",
    "gen_id": "Identity on f_inv",
    "gen_real": "Generated pictures pass for real",
    "gen_deg": "Generated pictures are degraded as told",
    "swap": "Change of a picture by another code",
    "code_std": "Deviation of degradation codes",
    "fuse": "Identity, fused feature",
    "inv": "Identity, f_inv",
    "sen": "Identity, f_sen",
    "attention": "Attention, mean",
    "attention_spread": "Attention, deviation over pictures",
    "smooth": "Disagreement on replayed pictures",
}
LABELS = "all"
STAGES = {"teacher": Teacher, "gan": Ddgan, "dfen": Dfen}
