"""``visionrl eval``: play a policy on seeds, report scores with intervals."""

from __future__ import annotations

import argparse
from pathlib import Path

from visionrl.job import DEFAULT_ENVIRONMENT, POLICIES
from visionrl.seeds import parse_seeds
from visionrl_cli.extras import needed_packages
from visionrl_cli.values import json_object, positive

DESCRIPTION = """Play one episode per seed and report the return (in Crafter, unique achievements) with a 95 % interval.

The policy is one of:
  --policy NAME                     one without a model: crafter-random, crafter-blind (the best distribution over
                                    actions that does not depend on the observation), crafter-scripted (the teacher)
  --model NAME --inference-url URL  a model behind any OpenAI-compatible server; its key from VISIONRL_POLICY_API_KEY
  --model DIR                       a run folder, a checkpoint, the output of visionrl train, an adapter or a model;
                                    the inference server is started here
  --model OWNER/NAME                the same for a model of the hub
  --run DIR                         a local run: its newest checkpoint, another --version, or the --base model
The task app is started here, too, unless --task-app names one. Ctrl-C ends everything that was started.

Environment and policy settings come from --config, else from the run or training, else they are a job file's defaults;
flags take precedence. An [eval] file of the reference system (TOML) names the model and the seeds, too. Compare on the
same seeds, 300 or more: on 96 seeds an interval is ± 0.4 achievements wide. Policies without a model play the
environment of --config, else Crafter; random, blind and scripted are short for crafter-random and so on.
"""
EXAMPLES = """examples:
  visionrl eval --policy crafter-blind --config configs/crafter-tiny.yaml --seeds 0-299
  visionrl eval --run runs/crafter-tiny --base --seeds 0-299 --out before.json
  visionrl eval --run runs/crafter-tiny --seeds 0-299 --out after.json --against before.json
  visionrl eval --model runs/crafter-tiny-sft --seeds 0-299               what visionrl train made
  visionrl eval --run runs/crafter-tiny --control grey --seeds 0-99       does it look at the image at all?
  visionrl eval --model Qwen/Qwen3-VL-4B-Instruct --env crafter --seeds 0,1,2,3,4 \\
      --policy-config '{"use_vision": true, "image_only_mode": true}'
  visionrl eval --model gpt-4o-mini --inference-url https://api.openai.com --seeds 0-9 --turns 10
  visionrl eval --run runs/crafter-tiny --protocol standard               scores to put beside published ones
  visionrl eval --policy crafter-scripted --seeds 0-199 --trace-db traces --json | jq .score
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    player = parser.add_argument_group("policy").add_mutually_exclusive_group()
    kinds = [kind for kind in POLICIES if kind != "react"]
    names = [*kinds, *(f"{DEFAULT_ENVIRONMENT}-{kind}" for kind in kinds)]
    player.add_argument("--policy", choices=names, help="a policy without a model")
    player.add_argument("--model", metavar="NAME|DIR", help="a model at --inference-url, or one to serve here")
    player.add_argument("--run", metavar="DIR", type=Path, help="a local run, such as runs/crafter-tiny")
    model = parser.add_argument_group("model and run")
    model.add_argument("--inference-url", metavar="URL", help="base URL of --model's server, with or without /v1")
    model.add_argument("--version", metavar="N|NAME", help="version of --run (default: its newest checkpoint)")
    model.add_argument("--base", action="store_true", help="the base model of --run, without an adapter")
    game = parser.add_argument_group("settings")
    game.add_argument(
        "--config", metavar="JOBFILE", type=Path, help="a job file, or the reference system's [eval] TOML"
    )
    game.add_argument("--env", metavar="NAME", help="environment (default: the config's)")
    game.add_argument("--seeds", metavar="SEEDS", type=_seeds, help="such as 0-299 or 0,1,2 (default: the config's)")
    game.add_argument(
        "--protocol",
        choices=("standard",),
        help="that of published scores: whole episodes of up to 10,000 steps, on seeds 0-29 unless others are named",
    )
    game.add_argument("--turns", metavar="N", type=positive, help="largest number of turns in an episode")
    game.add_argument("--temperature", metavar="T", type=float, help="sampling temperature")
    game.add_argument("--concurrency", metavar="N", type=positive, help="episodes in flight")
    game.add_argument(
        "--control", choices=("grey", "shuffled"), help="show a grey image, or the images of another episode"
    )
    game.add_argument(
        "--policy-config", metavar="JSON", type=json_object, help="""policy settings, such as '{"history_turns": 0}'"""
    )
    where = parser.add_argument_group("task app and traces")
    where.add_argument("--task-app", "--url", metavar="URL", help="use this one; its key from ENVIRONMENT_API_KEY")
    where.add_argument("--task-app-key-file", metavar="FILE", type=Path, help="file with the key of --task-app")
    where.add_argument("--trace-db", metavar="DIR", type=Path, help="keep traces of all episodes in DIR/traces.db")
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="write results as JSON; repeat the command to resume an interrupted evaluation",
    )
    results.add_argument("--against", metavar="FILE", type=Path, help="compare with these results, paired by seed")
    results.add_argument("--json", action="store_true", help="print the results as one JSON document")
    parser.set_defaults(refuse=parser.error)


def command(options: argparse.Namespace) -> int:
    if not (options.policy or options.model or options.run or options.config):
        options.refuse("name what plays: --policy, --model or --run, or an [eval] file with --config")
    with needed_packages("eval", "operator,taskapp,trainer"):
        from visionrl_cli.evaluation.plan import EvalOptions
        from visionrl_cli.evaluation.session import evaluate
    return evaluate(
        EvalOptions(
            policy=options.policy,
            model=options.model,
            inference_url=options.inference_url,
            run=options.run,
            version=options.version,
            base=options.base,
            config=options.config,
            env=options.env,
            protocol=options.protocol,
            seeds=options.seeds,
            turns=options.turns,
            temperature=options.temperature,
            concurrency=options.concurrency,
            control=options.control,
            policy_config=options.policy_config,
            task_app=options.task_app,
            task_app_key_file=options.task_app_key_file,
            trace_db=options.trace_db,
            out=options.out,
            against=options.against,
            as_json=options.json,
        )
    )


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return parse_seeds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
