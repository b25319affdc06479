"""``atoll init``: the keys of a new cluster, and the settings of its first site."""

import argparse

from agent.cli.lifecycle import write_settings
from agent.cli.new_site import adopt, make_state_dir, settings_to_be
from agent.cli.output import print_json
from agent.cli.site_files import config_option, config_path
from agent.drivers.clock import wall
from agent.drivers.keystore import found_cluster
from agent.foundation.errors import UsageError


def found(asked: argparse.Namespace, passphrase: str) -> None:
    """Make the cluster and say what to do next.

    Raises:
        UsageError: its jurisdiction is not in the cluster's vocabulary.
        ConfigError: this machine is a site already, or the settings are wrong.
    """
    if asked.jurisdictions and asked.jurisdiction not in asked.jurisdictions:
        raise UsageError(
            f"jurisdiction {asked.jurisdiction} is not in --jurisdictions",
            why="they are all that sites of this cluster may have, this one included",
            mend="name it there too",
        )
    settings = settings_to_be(asked)
    make_state_dir(settings)
    result = found_cluster(
        settings.identity_dir,
        name=asked.name,
        region=asked.region,
        tier=asked.tier,
        jurisdiction=asked.jurisdiction,
        roles=tuple(dict.fromkeys(asked.roles)),
        passphrase=passphrase,
        now=wall(),
        jurisdictions=asked.jurisdictions,
    )
    is_written = write_settings(
        asked, {"site.name": asked.name, "site.state_dir": settings.state_dir}
    )
    adopt(settings)
    keys = result.keys
    if asked.json:
        print_json(
            {
                "site": keys.site.hex(),
                "name": asked.name,
                "cluster": keys.cluster.hex(),
                "root_key": str(result.root_key),
                "admin_key": str(result.admin_key),
                "config": str(config_path(asked)),
            }
        )
        return
    print(
        f"founded cluster {keys.cluster.hex()[:16]} with site {asked.name} ({keys.site.hex()[:8]})"
    )
    if is_written:
        print(f"settings   {config_path(asked)}")
    print(f"root key   {result.root_key}")
    print(
        "           move it to offline media now: it is needed only to change issuers, admins and"
    )
    print("           jurisdictions")
    print(f"admin key  {result.admin_key}")
    option = config_option(asked)
    print(f"next       atoll run{option}   (or: systemctl enable --now atoll)")
    print(f"then       atoll token create{option} --name NAME --region R --tier T --jurisdiction J")
