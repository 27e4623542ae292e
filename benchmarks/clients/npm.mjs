// FLORA's official client for node, as it is installed in the folder that this is run in.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const { default: FLORA } = createRequire(`${process.cwd()}/`)('@flora-ai/flora');
const ORDER = JSON.parse(readFileSync(new URL('order.json', import.meta.url), 'utf8'));

export const connect = (baseURL) => {
  const client = new FLORA({ apiKey: 'sk_live_bench', baseURL });
  return {
    retrieve: (runId) => client.generations.retrieve(runId),
    create: (number) => client.generations.create({ ...ORDER, prompt: `${ORDER.prompt} ${number}` }),
    history: async () => {
      let items = 0;
      for await (const _ of client.generations.list({ limit: 100 })) items += 1;
      return items;
    },
  };
};

export const decodePage = (body) => JSON.parse(body);
