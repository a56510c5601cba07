"""How `mmjax generate` and `mmjax chat` answer: options of the command line, and what the library makes of them."""

from mmjax.config import ConfigError


def add_sampling(parser) -> None:
    """How words are chosen."""
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="default: 128; the length of an image, if each answer is one"
    )
    parser.add_argument("--min-new-tokens", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="default: 0, the likeliest token"
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest; 0: no limit"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest of sum P"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: fewer repeats"
    )
    parser.add_argument("--seed", type=int, default=0)


def add_drawing(parser) -> None:
    """How media are made or looked up."""
    group = parser.add_argument_group("models that draw")
    group.add_argument(
        "--steps", type=int, metavar="N", help="of a diffusion sampler; default: the checkpoint's, else 50"
    )
    group.add_argument(
        "--guidance-scale",
        type=float,
        metavar="S",
        help="1 is none; default: the checkpoint's, else 7.5, of images as tokens the model's own",
    )
    group = parser.add_argument_group("models that write images as tokens (Janus, Emu3, Chameleon)")
    group.add_argument(
        "--generation-mode",
        choices=("text", "interleaved", "image"),
        help="image: every answer is one; interleaved: where the model begins one; default: the model's own",
    )
    group.add_argument(
        "--image-grid", type=int, nargs=2, metavar=("H", "W"), help="height and width in tokens; default: as trained"
    )
    group.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    group = parser.add_argument_group("models that look images up (FROMAGe, GILL)")
    group.add_argument(
        "--gallery",
        action="append",
        default=[],
        metavar="PORT=DIR",
        help="look the signals of a port up among the images of a folder (repeatable)",
    )
    group.add_argument("--num-retrieved", type=int, metavar="K", help="images a signal gives; default: 1")


def read_galleries(args, model) -> dict:
    """--gallery PORT=DIR, embedded."""
    found = {}
    for word in args.gallery:
        port, equals, directory = word.partition("=")
        if not (port and equals and directory) or port in found:
            raise ConfigError(f"--gallery {word}: wanted is PORT=DIR, each port once")
        found[port] = model.gallery(port, directory)
    return found


def read_generation(args, model, **more):
    """(GenerateOptions, how media are made) of the command line; the stop tokens are the model's.

    `more` stands for options of the command line, by their names in Python.
    """
    if args.temperature < 0:
        raise ConfigError(f"--temperature must be 0 (the likeliest token) or more, got {args.temperature}")
    said = {
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "generation_mode": args.generation_mode,
        "image_grid": args.image_grid,
        "negative_prompt": args.negative_prompt,
        "num_retrieved": args.num_retrieved,
        "max_new_tokens": args.max_new_tokens,
        **more,
    }
    options = {name: value for name, value in said.items() if value is not None}
    options |= {"galleries": read_galleries(args, model), "seed": args.seed}
    making = model.making(options)
    options.setdefault("max_new_tokens", 128)
    chosen = model.options_of(
        min_new_tokens=args.min_new_tokens,
        do_sample=args.temperature > 0,
        temperature=args.temperature or 1.0,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        **options,
    )
    return chosen, making
