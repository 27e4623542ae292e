// What worker.py is, for node: one contestant, a workload from each line of the input, what it cost on the output.
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

const AT_ONCE = 64;
const POLL_INTERVAL = 30_000;
const [contestantPath, baseURL, pagePath] = process.argv.slice(2);

const spent = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

const resident = () => {
  globalThis.gc();
  return process.memoryUsage().rss;
};

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds).unref());

const crowd = async (calls, call) => {
  let next = 0;
  const one = async () => {
    while (next < calls) await call(next++);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, one));
};

const waiting = async (client, runs) => {
  const wait = async (runId) => {
    while ((await client.retrieve(runId)).status !== 'completed') await sleep(POLL_INTERVAL);
  };
  await crowd(4 * AT_ONCE, () => client.retrieve('run_bench'));
  const before = resident();
  const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
  for (let first = 0; first < runs; first += AT_ONCE) {
    for (let number = first; number < Math.min(runs, first + AT_ONCE); number += 1) {
      wait(`run_slow${String(number).padStart(10, '0')}`);
    }
    await pause(250);
  }
  await pause(1000);
  return (resident() - before) / runs;
};

const measure = async ({ connect, decodePage }, client, workload, calls) => {
  if (workload === 'waiting') return { bytes: await waiting(client, calls) };
  const page = readFileSync(pagePath, 'utf8');
  const decode = (times) => {
    for (let time = 0; time < times; time += 1) decodePage(page);
  };
  if (workload === 'decode') decode(2);
  else if (workload === 'create') await crowd(AT_ONCE, (number) => client.create(number));
  else await crowd(workload === 'crowd' ? AT_ONCE : 1, () => client.retrieve('run_bench'));
  globalThis.gc();
  const began = performance.now();
  const before = spent();
  if (workload === 'decode') decode(calls);
  else if (workload === 'history') calls = await client.history();
  else if (workload === 'create') await crowd(calls, (number) => client.create(number));
  else if (workload === 'crowd') await crowd(calls, () => client.retrieve('run_bench'));
  else for (let call = 0; call < calls; call += 1) await client.retrieve('run_bench');
  return { cpu: (spent() - before) / calls, wall: (performance.now() - began) / 1000 / calls };
};

let contestant;
try {
  contestant = await import(contestantPath);
} catch (error) {
  console.log(JSON.stringify({ missing: error.message.split('\n')[0] }));
  process.exit(0);
}
console.log(JSON.stringify({ imports: null, api: null }));
const client = contestant.connect(baseURL);
for await (const line of createInterface({ input: process.stdin })) {
  const [workload, calls] = JSON.parse(line);
  console.log(JSON.stringify(await measure(contestant, client, workload, calls)));
}
