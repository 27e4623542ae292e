"""Prompts on standard input, one a line, within a budget: estimate first, retry failures, print the final costs.

Ask for the estimate only: python budget.py 5.00 --dry-run < prompts.txt
"""

import asyncio
import sys

from flora_async import Budget, Flora, Order


def warn(budget: Budget, share: float) -> None:
    """Print each threshold that the expected cost reaches."""
    print(f"{share:.0%} of {budget.usd:.2f} USD are spent or expected", file=sys.stderr)


async def main(usd: float, *, dry_run: bool) -> int:
    """Order an image for each line. Return the exit code: 1 if an image is missing."""
    orders = [
        Order(type="image", prompt=line.strip(), workspace_id="ws_demo", project_id="prj_demo", model="sandbox-image")
        for line in sys.stdin
        if line.strip()
    ]
    async with Flora() as flora:
        estimate = await flora.estimate(orders)
        cost = "unknown" if estimate.usd is None else f"{estimate.low:.2f} to {estimate.high:.2f} USD"
        print(f"{len(orders)} images: {cost} ({estimate.basis}), {estimate.seconds:.0f} s each")
        if dry_run:
            return 0
        budget = Budget(usd, on_threshold=warn)
        outcomes = flora.generate_many(orders, budget=budget, retry_failed=2, settle=True)
        done = 0
        async for outcome in outcomes:
            again = f" at attempt {len(outcome.attempts) + 1}" if outcome.attempts else ""
            print(f"{outcome.order.prompt}: {outcome.run.outputs[0].url if outcome.run else outcome.error}{again}")
            done += outcome.run is not None
        print(f"{done} of {len(orders)} images, {outcomes.spent:.2f} USD, {outcomes.unsettled} not settled")
        if outcomes.stop_reason:
            print(f"stopped: {outcomes.stop_reason}")
        return 0 if done == len(orders) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(float(sys.argv[1]), dry_run="--dry-run" in sys.argv)))
