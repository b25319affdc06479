"""What the NVFlare server does beside FedAvg: a line for each round, when it keeps that round's parameters."""

import torch
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
from torch import nn
from training_log import now, say
from training_work import accuracy, model


class Net(nn.Sequential):
    """``training_work.model`` as a class, which NVFlare asks for."""

    def __init__(self) -> None:
        super().__init__(*model())


class Rounds(PTFileModelPersistor):
    """NVFlare's own keeper of parameters, and the log."""

    def __init__(self) -> None:
        super().__init__(model=Net())

    def save_model(self, learnable: ModelLearnable, fl_ctx: FLContext) -> None:
        """Keep, then measure."""
        super().save_model(learnable, fl_ctx)
        at = now()
        parameters = learnable[ModelLearnableKey.WEIGHTS]
        right = accuracy({key: torch.as_tensor(value) for key, value in parameters.items()})
        number = fl_ctx.get_prop(AppConstants.CURRENT_ROUND) + 1
        say(round=number, accuracy=right, at=at)
