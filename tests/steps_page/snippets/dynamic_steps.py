from treadle import step

def fitter_of(kind: str):
    @step(outputs=[f"{kind}_fitted"])
    def train():
        return fit(kind)
    return train

for kind in ["xgboost", "random_forest", "neural_net"]:
    fitter = fitter_of(kind)
    pipeline.add_step(fitter)
