from utils.config import load_config as load_any_config
