// Orders many generations with FLORA's official client, 64 at a time, and prints which run each order got.
import Flora from '@flora-ai/flora';

const flora = new Flora({ timeout: 500 });
const scope = { type: 'text', workspace_id: 'ws_1', project_id: 'prj_1' };
const runs = {};
let next = 0;

async function work(count) {
  while (next < count) {
    const prompt = `order ${next++}`;
    runs[prompt] = null;
    try {
      runs[prompt] = (await flora.generations.create({ ...scope, prompt })).run_id ?? null;
    } catch {
      // an ordinary error
    }
  }
}

const count = Number(process.argv[2]);
await Promise.all(Array.from({ length: 64 }, () => work(count)));
console.log(JSON.stringify(runs));
