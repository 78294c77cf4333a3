from treadle import step
from typing import List, Dict
import pandas as pd

@step(outputs=["dataframe"])
def numbers(path: str) -> pd.DataFrame:
    return pd.read_csv(path)
