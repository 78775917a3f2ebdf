"""What a search costs and finds: twelve trials stopped early by ASHA, and a population of eight, on the demo's clips.

    python benchmarks/search.py            the shipped recipes on the demo's 640 clips: some minutes on two cores
    python benchmarks/search.py --quick    few clips and epochs: shows the path, not what is found

Both go through `vast search`. A campaign that is there already is not run again: its record says what it cost. The last
line is JSON:

    asha.steps_share    updates that the trials made / updates had each run to the end
    *.best_minus_own    top-1 of the best trial minus that of the recipe's own settings, in points (the same code, data
                        and seed; of ASHA, where the recipe's own trial stood when it ended)
    *.seconds           wall clock of all sessions of the campaign, with the start of Ray and of every trial
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from learning import make_set, vast

from pipelines.search.record import read_campaign

QUICK = ["data.num_frames=4", "data.crop_size=32", "data.eval_short_side=32", "optim.warmup_epochs=0"]


def main() -> None:
    """Run both campaigns and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few clips and epochs")
    parser.add_argument("--again", action="store_true", help="remove what earlier runs left")
    parser.add_argument("--out", default=".vast/search", metavar="DIR", help="(default: .vast/search)")
    args = parser.parse_args()
    out = Path(args.out).resolve() / ("quick" if args.quick else "full")
    if args.again:
        shutil.rmtree(out / "runs", ignore_errors=True)
    clips = (32, 16) if args.quick else (640, 240)
    ssv2 = make_set(out, "ssv2", clips, ["--annotations", "labels", "--videos", "20bn-something-something-v2"])
    less = {"asha": ["optim.epochs=3", "search.num_trials=5"], "pbt": ["optim.epochs=4", "search.num_trials=4"]}
    found: dict[str, Any] = {"quick": args.quick}
    for kind, recipe in (("asha", "demo_search"), ("pbt", "demo_search_pbt")):
        words = [*QUICK, *less[kind]] if args.quick else []
        print(vast("search", recipe, f"data.url={ssv2}", *words, "--output", str(out / "runs")), flush=True)
        found[kind] = cost(out / "runs", recipe)
    print(json.dumps(found))


def cost(runs: Path, recipe: str) -> dict[str, Any]:
    """What the record of a campaign says."""
    (folder,) = runs.glob(f"{recipe}-search-*")
    record = read_campaign(str(folder))
    best, own = record.ranked()[0], record.trials[0]
    best_value, own_value = (trial.reports[-1].figures[record.metric] for trial in (best, own))
    return {
        "trials": len(record.trials),
        "seconds": round(record.spent_s),
        "steps_share": round(record.steps_trained / record.steps_to_the_end, 3),
        "best": round(best_value, 2),
        "own": round(own_value, 2),
        "own_epochs": own.reports[-1].epoch,
        "best_minus_own": round(best_value - own_value, 2),
        "takeovers": sum(len(trial.exploits) for trial in record.trials),
    }


if __name__ == "__main__":
    main()
