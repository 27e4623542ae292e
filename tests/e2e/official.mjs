// Drives FLORA's official client against a server, unchanged, and prints what it met as JSON.
import Flora from '@flora-ai/flora';

const order = { type: 'text', prompt: 'a mug', workspace_id: 'ws_1', project_id: 'prj_1' };
const flora = new Flora({ maxRetries: 0 });

const started = await flora.generations.create(order);
let run = await flora.generations.retrieve(started.run_id);
while (run.status !== 'completed') {
  await new Promise((resolve) => setTimeout(resolve, 20));
  run = await flora.generations.retrieve(started.run_id);
}

const made = [started.run_id];
while (made.length < 250) {
  const batch = Array.from({ length: 25 }, () => flora.generations.create(order));
  made.push(...(await Promise.all(batch)).map((each) => each.run_id));
}
made.length = 250;
const listed = [];
for await (const generation of flora.generations.list({ limit: 100 })) listed.push(generation.run_id);

async function met(call) {
  try {
    await call();
    return 'nothing';
  } catch (error) {
    for (const name of ['BadRequestError', 'AuthenticationError', 'NotFoundError', 'RateLimitError'])
      if (error instanceof Flora[name]) return `${name} ${error.status} ${error.error?.error?.code}`;
    return String(error);
  }
}

const stranger = new Flora({ apiKey: 'sk_test_wrong', maxRetries: 0 });
console.log(
  JSON.stringify({
    started,
    run,
    listed: listed.length,
    known: made.filter((id) => listed.includes(id)).length,
    models: (await flora.models.list({ type: 'image' })).models.length,
    workspaces: (await flora.workspaces.list()).workspaces.length,
    errors: [
      await met(() => flora.generations.create({ ...order, prompt: '' })),
      await met(() => stranger.generations.retrieve(started.run_id)),
      await met(() => flora.generations.retrieve('run_unknown')),
      await met(() => flora.generations.create({ ...order, prompt: '[http:429] a mug' })),
    ],
  }),
);
