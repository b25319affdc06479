"""What an NVFlare client does: one local epoch a round."""

import nvflare.client as flare
import torch
from training_log import say
from training_work import local


def main() -> None:
    """Train as often as it is asked."""
    flare.init()
    site = int(flare.get_site_name().removeprefix("site-"))
    while flare.is_running():
        asked = flare.receive()
        if asked is None:
            break
        state = {key: torch.as_tensor(value) for key, value in asked.params.items()}
        number = (asked.current_round or 0) + 1
        say(site=site, trains=number)
        made, count = local((site, number, state))
        weight = {"NUM_STEPS_CURRENT_ROUND": count}
        flare.send(flare.FLModel(params=made, meta=weight))


if __name__ == "__main__":
    main()
