"""Effects: what a handler does outside is done once, whatever breaks off; and a plan that undoes what it did."""

import asyncio

import bus
from bus import Agent, Context, Done, NotDone, Phase, Plan, Reject, Retry

agent = Agent("shop")


class Bank:
    """Somewhere else: it takes the money, and the line breaks before it can say so."""

    def __init__(self) -> None:
        self.charges: dict[str, int] = {}

    async def charge(self, key: str) -> int:
        self.charges[key] = len(self.charges) + 1
        raise TimeoutError("no answer from the bank")

    async def look_up(self, key: str) -> Done | NotDone:
        return Done(self.charges[key]) if key in self.charges else NotDone()


bank = Bank()


@agent.capability("pay")
async def pay(_order: object, context: Context) -> int:
    """The first attempt does not know what happened. The second asks the bank, and does not charge again."""
    return await context.once("charge", bank.charge, bank.look_up, gives=int)


@agent.capability("pack")
async def pack(_order: object, context: Context) -> list[str]:
    """Goes on where the first attempt was when it broke off."""
    packed: list[str] = context.saved() or []
    for thing in ["lamp", "cable", "bulb"][len(packed) :]:
        packed.append(thing)
        await context.save(packed)
        if thing == "cable" and context.attempt == 1:
            raise ConnectionResetError("the robot stopped")
    return packed


@agent.capability("ship")
async def ship(_order: object) -> None:
    """Can't."""
    raise Reject("no ship sails there")


@agent.capability("refund")
async def refund(about: dict[str, object], context: Context) -> None:
    """Undoes the payment, once as well."""
    await context.once("refund", lambda key: print("refunded charge", about["output"]))


plan = Plan(
    "order",
    on_failure="rollback",
    phases=[
        Phase("pay", "pay", compensate="refund", retry=Retry(transient_s=0)),
        Phase("pack", "pack", after=["pay"], retry=Retry(transient_s=0)),
        Phase("ship", "ship", after=["pack"]),
    ],
)


async def main() -> None:
    """Order, and see what became of it."""
    async with bus.connect() as client, bus.serving(client, agent):
        run = (await client.start(plan)).run
        state = await client.result(run, timeout_s=20)
        print("charges:", list(bank.charges.values()), "with key", next(iter(bank.charges)).replace(run, "RUN"))
        print("packed:", state.phases["pack"].output.value, "by attempt", state.phases["pack"].items[0].attempt)
        print(state.status, {key: phase.status for key, phase in state.phases.items()})


if __name__ == "__main__":
    asyncio.run(main())

# prints: refunded charge 1
# prints: charges: [1] with key RUN/pay/charge
# prints: packed: ['lamp', 'cable', 'bulb'] by attempt 2
# prints: failed {'pay': 'rolled_back', 'pack': 'completed', 'ship': 'failed'}
