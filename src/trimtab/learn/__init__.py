"""The learned router: environments, demonstrations, cloning, PPO. Needs the extra ``learn``."""
