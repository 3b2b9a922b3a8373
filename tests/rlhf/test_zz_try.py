import time, pytest, json, functools, jax, os
from camelid.launch.cli import main
from camelid.train import setup
from camelid.model.sharding import make_mesh
def timed(name, argv):
    t=time.process_time(); w=time.time(); r=main(argv); print("TIMED", name, r, round(time.process_time()-t,1), round(time.time()-w,1), flush=True)
def test_it(reward_run, rl_arguments, tuned, tmp_path, metrics, monkeypatch):
    if os.environ.get("ONE"):
        monkeypatch.setattr(setup, "make_mesh", lambda axes: make_mesh(axes, jax.devices()[:1]))
    if os.environ.get("CACHE"):
        jax.config.update("jax_compilation_cache_dir", str(tmp_path/"c"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    timed("ppo m", rl_arguments("ppo", tmp_path/"m", init_from=tuned, reward=reward_run))
    timed("grpo", rl_arguments("grpo", tmp_path/"g", init_from=tuned))
    timed("grpo rloo", rl_arguments("grpo", tmp_path/"g2", init_from=tuned)+["--config.grpo.advantage=rloo", "--config.grpo.kl_in=reward"])
    timed("raft", rl_arguments("raft", tmp_path/"r", init_from=tuned))
    timed("dpo", rl_arguments("dpo", tmp_path/"d", init_from=tuned))
    timed("dpo ipo", rl_arguments("dpo", tmp_path/"d1", init_from=tuned, kind="ipo"))
    timed("dpo kto no heldout", rl_arguments("dpo", tmp_path/"d2", init_from=tuned, kind="kto")+["--config.data.heldout=0"])
    for k in "m g g2 r d d1 d2".split():
        print("RUN", k)
        for n,v in metrics(tmp_path/k).items(): print(n,{a:round(b,3) for a,b in v.items() if a in("train/loss", "objective/scores","objective/kl","objective/kl_coef", "cost/multiplier", "ptx/loss", "rewards/accuracy","rewards/margin","eval/heldout/scores","eval/heldout/pairs/accuracy", "objective/scores_of_best","policy/first_ratio_error", "value/explained_variance")})
